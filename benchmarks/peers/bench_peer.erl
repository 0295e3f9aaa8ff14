%% The programs of `with_erlang`: gen_servers that echo, and a client that measures them.
-module(bench_peer).
-behaviour(gen_server).
-export([server/1, client/1]).
-export([init/1, handle_call/3, handle_cast/2]).

-define(PAYLOAD, <<0:512>>).
-define(LOST_AFTER_S, 60).

%% The server: EACH gen_servers, until the parent closes our stdin.

server([Each]) ->
    [{ok, _} = gen_server:start({local, name(N)}, ?MODULE, [], [])
     || N <- lists:seq(0, list_to_integer(Each) - 1)],
    io:format("{\"ready\": true}~n"),
    wait_until_closed().

init([]) -> {ok, 0}.

handle_call({echo, Payload}, _From, Count) -> {reply, Payload, Count};
handle_call({length, Payload}, _From, Count) -> {reply, byte_size(Payload), Count};
handle_call({counted, Expected}, _From, Count) when Count >= Expected -> {reply, Count, 0};
handle_call({counted, _Expected}, _From, Count) -> {reply, Count, Count}.

handle_cast({count, _Payload}, Count) -> {noreply, Count + 1}.

%% The client: one measurement for each line of the parent.

client([Work, Servers, AtOnce, Sizes | Numbers]) ->
    [Each, Count, Sequential, Outstanding, TotalMib] = [list_to_integer(N) || N <- Numbers],
    Nodes = [list_to_atom(Text) || Text <- string:lexemes(Servers, ",")],
    lists:foreach(fun connect/1, Nodes),
    Targets = [{name(N), Node} || Node <- Nodes, N <- lists:seq(0, max(Each, 1) - 1)],
    Measure = fun() ->
        case Work of
            "one-way" -> one_way(hd(Targets), Count);
            "fan-out" -> fan_out(Targets, Count);
            "bulk" -> bulk(hd(Targets), pairs(Sizes), TotalMib);
            _ -> calls(hd(Targets), Sequential, Outstanding, numbers(AtOnce))
        end
    end,
    io:format("{\"ready\": true}~n"),
    serve_commands(Measure).

connect(Node) ->
    case net_kernel:connect_node(Node) of
        true -> ok;
        _ -> timer:sleep(20), connect(Node)
    end.

serve_commands(Measure) ->
    case io:get_line("") of
        eof -> erlang:halt(0);
        {error, _} -> erlang:halt(0);
        _Line ->
            Pairs = [io_lib:format("\"~s\": ~.9f", [Key, float(Value)]) || {Key, Value} <- Measure()],
            io:format("{~s}~n", [lists:join(", ", Pairs)]),
            serve_commands(Measure)
    end.

calls(Target, Sequential, Outstanding, AtOnce) ->
    Times = [timed(fun() -> echo(Target) end) || _ <- lists:seq(1, Sequential)],
    percentiles(Times) ++ [{"rate_" ++ integer_to_list(N), at_once(Target, N, Outstanding)} || N <- AtOnce].

at_once(Target, Callers, Count) ->
    Each = max(1, Count div Callers),
    Took = timed(fun() ->
        Started = [spawn_monitor(fun() -> repeat(Each, fun() -> echo(Target) end) end)
                   || _ <- lists:seq(1, Callers)],
        [receive {'DOWN', Ref, process, Pid, normal} -> ok end || {Pid, Ref} <- Started]
    end),
    Each * Callers / Took.

fan_out(Targets, Count) ->
    Times = [timed(fun() -> call_all(Targets) end) || _ <- lists:seq(1, Count)],
    [{"rate", length(Times) / lists:sum(Times)} | percentiles(Times)].

call_all(Targets) ->
    Requests = [gen_server:send_request(Target, {echo, ?PAYLOAD}) || Target <- Targets],
    [{reply, _} = gen_server:receive_response(Request, 60000) || Request <- Requests].

bulk(Target, Sizes, TotalMib) ->
    [{Key, bulk_rate(Target, Size, max(1, min(1000, TotalMib * 1048576 div Size)))} || {Key, Size} <- Sizes].

bulk_rate(Target, Size, Count) ->
    Payload = rand:bytes(Size),
    Took = timed(fun() ->
        repeat(Count, fun() -> Size = gen_server:call(Target, {length, Payload}, 60000) end)
    end),
    Count * Size / Took.

one_way(Target, Count) ->
    Took = timed(fun() ->
        repeat(Count, fun() -> gen_server:cast(Target, {count, ?PAYLOAD}) end),
        wait_counted(Target, Count, erlang:monotonic_time(second) + ?LOST_AFTER_S)
    end),
    [{"rate", Count / Took}].

wait_counted(Target, Count, Until) ->
    case gen_server:call(Target, {counted, Count}, 60000) of
        Received when Received >= Count -> ok;
        Received ->
            case erlang:monotonic_time(second) > Until of
                true -> error({lost, Count - Received});
                false -> wait_counted(Target, Count, Until)
            end
    end.

echo(Target) -> ?PAYLOAD = gen_server:call(Target, {echo, ?PAYLOAD}, 60000).

repeat(0, _Do) -> ok;
repeat(N, Do) -> Do(), repeat(N - 1, Do).

timed(Do) ->
    Started = erlang:monotonic_time(),
    Do(),
    erlang:convert_time_unit(erlang:monotonic_time() - Started, native, nanosecond) / 1.0e9.

percentiles(Times) ->
    Sorted = lists:sort(Times),
    Length = length(Sorted),
    [{"p50_s", lists:nth(Length div 2 + 1, Sorted)},
     {"p99_s", lists:nth(min(Length, Length * 99 div 100 + 1), Sorted)}].

name(N) -> list_to_atom("echo" ++ integer_to_list(N)).

numbers(Text) -> [list_to_integer(N) || N <- string:lexemes(Text, ",")].

pairs(Text) ->
    [begin [Key, Size] = string:lexemes(Pair, "="), {Key, list_to_integer(Size)} end
     || Pair <- string:lexemes(Text, ",")].

wait_until_closed() ->
    case io:get_line("") of
        eof -> erlang:halt(0);
        {error, _} -> erlang:halt(0);
        _ -> wait_until_closed()
    end.

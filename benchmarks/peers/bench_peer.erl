%% The programs of `with_erlang`: gen_servers that echo, a client that measures them, and nodes of a mesh.
-module(bench_peer).
-behaviour(gen_server).
-export([server/1, client/1, member/1]).
-export([init/1, handle_call/3, handle_cast/2]).

-define(PAYLOAD, <<0:512>>).
-define(LARGE_BYTES, 16777216).
-define(PAUSE_MS, 2).
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
    [Each, Count, Sequential, Outstanding, TotalMib, Ms] = [list_to_integer(N) || N <- Numbers],
    Nodes = [list_to_atom(Text) || Text <- string:lexemes(Servers, ",")],
    lists:foreach(fun connect/1, Nodes),
    Targets = [{name(N), Node} || Node <- Nodes, N <- lists:seq(0, max(Each, 1) - 1)],
    Measure = fun() ->
        case Work of
            "one-way" -> one_way(hd(Targets), Count);
            "fan-out" -> fan_out(Targets, Count);
            "bulk" -> bulk(hd(Targets), pairs(Sizes), TotalMib);
            "beside" -> beside(hd(Targets), Ms);
            "local" -> local(Count, Sequential);
            "spawn" -> spawn_idle(Count);
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

%% Small calls beside large ones on the same connection, as `measures.beside`.

beside(Target, Ms) ->
    Moved = counters:new(1, []),
    Payload = binary:copy(<<0>>, ?LARGE_BYTES),
    {Large, Ref} = spawn_monitor(fun() -> call_large(Target, Payload, Moved) end),
    Began = erlang:monotonic_time(millisecond),
    Times = small_calls(Target, Began + Ms, []),
    TookMs = erlang:monotonic_time(millisecond) - Began,
    exit(Large, kill),
    receive {'DOWN', Ref, process, Large, killed} -> ok end,
    [{"large", counters:get(Moved, 1) * 1000 / TookMs} | percentiles(Times)].

call_large(Target, Payload, Moved) ->
    counters:add(Moved, 1, gen_server:call(Target, {length, Payload}, 60000)),
    call_large(Target, Payload, Moved).

small_calls(Target, Until, Times) ->
    case erlang:monotonic_time(millisecond) < Until of
        false -> Times;
        true ->
            Took = timed(fun() -> 64 = gen_server:call(Target, {length, ?PAYLOAD}, 60000) end),
            timer:sleep(?PAUSE_MS),
            small_calls(Target, Until, [Took | Times])
    end.

%% Two processes of one node.

local(Count, Sequential) ->
    {ok, Target} = gen_server:start(?MODULE, [], []),
    Rates = one_way(Target, Count),
    Times = [timed(fun() -> echo(Target) end) || _ <- lists:seq(1, Sequential)],
    ok = gen_server:stop(Target),
    Rates ++ [Pair || {"p50_s", _} = Pair <- percentiles(Times)].

spawn_idle(Count) ->
    erlang:garbage_collect(),
    Before = erlang:memory(processes),
    Self = self(),
    Began = erlang:monotonic_time(),
    Pids = [spawn(fun() -> Self ! waiting, receive stop -> ok end end) || _ <- lists:seq(1, Count)],
    repeat(Count, fun() -> receive waiting -> ok end end),
    Took = erlang:convert_time_unit(erlang:monotonic_time() - Began, native, nanosecond) / 1.0e9,
    erlang:garbage_collect(),
    Grown = erlang:memory(processes) - Before,
    [Pid ! stop || Pid <- Pids],
    [{"rate", Count / Took}, {"bytes_each", Grown / Count}].

%% A node of a mesh: TASK is "mesh", "idle" or "crash"; INDEX is its own among NODES.

member([Task, IndexText, NodesText, MsText]) ->
    Index = list_to_integer(IndexText),
    Nodes = [list_to_atom(Text) || Text <- string:lexemes(NodesText, ",")],
    Others = lists:delete(node(), Nodes),
    case Task of
        "mesh" ->
            io:format("{\"ready\": true}~n"),
            io:get_line(""),
            connect_all(Others),
            io:format("{\"done\": true}~n");
        "idle" ->
            io:format("{\"started\": true}~n"),
            connect_all(Others),
            io:format("{\"ready\": true}~n"),
            io:get_line(""),
            Before = cpu_s(),
            Began = erlang:monotonic_time(millisecond),
            timer:sleep(list_to_integer(MsText)),
            Minutes = (erlang:monotonic_time(millisecond) - Began) / 60000,
            io:format("{\"total_s\": ~.9f}~n", [(cpu_s() - Before) / Minutes]);
        "crash" when Index =:= 0 ->
            register(never, spawn(fun() -> timer:sleep(infinity) end)),
            io:format("{\"started\": true}~n"),
            connect_all(Others),
            io:format("{\"ready\": true}~n");
        "crash" ->
            io:format("{\"started\": true}~n"),
            connect_all(Others),
            notice(hd(Nodes))
    end,
    wait_until_closed().

connect_all(Others) ->
    lists:foreach(fun connect/1, Others),
    wait_connected(length(Others)).

wait_connected(Count) ->
    case length(nodes()) of
        Count -> ok;
        _ -> timer:sleep(5), wait_connected(Count)
    end.

notice(Victim) ->
    Self = self(),
    wait_registered(Victim),
    true = erlang:monitor_node(Victim, true),
    spawn(fun() ->
        try gen_server:call({never, Victim}, wait, 60000) catch exit:_ -> Self ! {failed, now_s()} end
    end),
    timer:sleep(20),
    io:format("{\"ready\": true}~n"),
    DownAt = receive {nodedown, Victim} -> now_s() end,
    FailedAt = receive {failed, At} -> At end,
    io:format("{\"down_at\": ~.9f, \"failed_at\": ~.9f}~n", [DownAt, FailedAt]).

%% A node can be reached before its program runs.
wait_registered(Node) ->
    case erpc:call(Node, erlang, whereis, [never]) of
        undefined -> timer:sleep(5), wait_registered(Node);
        _Pid -> ok
    end.

%% The clock that Python calls CLOCK_MONOTONIC.
now_s() -> os:perf_counter(nanosecond) / 1.0e9.

%% All threads. Source: proc(5), the first field of schedstat: nanoseconds on a CPU.
cpu_s() ->
    Folder = "/proc/" ++ os:getpid() ++ "/task/",
    {ok, Threads} = file:list_dir(Folder),
    lists:sum([nanoseconds(file:read_file(Folder ++ Thread ++ "/schedstat")) || Thread <- Threads]) / 1.0e9.

nanoseconds({ok, Text}) -> binary_to_integer(hd(binary:split(Text, <<" ">>)));
nanoseconds({error, _}) -> 0.

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

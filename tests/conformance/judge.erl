%% Plays scenarios on real Erlang nodes and prints what their processes saw.
%%
%% Reads the scenarios that script.py expands ("== name", then one step a line) and prints one line
%% for each: the name, a tab, and a JSON list of strings. script.py describes the language.
%%
%% Two nodes, both on loopback and without epmd: this one (`here`) and a peer (`there`), which is
%% driven through its standard input, so that it can be told what to do while it is not connected,
%% and ends with us whatever happens.
-module(judge).
-behaviour(supervisor).
-export([main/0, init/1]).
%% Called on either node:
-export([boot/0, new/3, order/4, rows/1, alive/1, groups/3, start_child/3, init_child/4, start_tree/3]).

-define(SETTLE_MS, 75).
-define(TOGETHER, 50).
-define(STUCK_MS, 15000).
-define(ALL_MS, 38000).

%% ── the program ─────────────────────────────────────────────────────────────────────────────────

main() ->
    spawn(fun() -> timer:sleep(?ALL_MS), io:format(standard_error, "took too long~n", []), halt(1) end),
    try
        [File] = init:get_plain_arguments(),
        {ok, Text} = file:read_file(File),
        boot(),
        play_all(scenarios(binary_to_list(Text))),
        halt(0)
    catch
        Class:Reason:Stack ->
            io:format(standard_error, "~p ~p~n~p~n", [Class, Reason, Stack]),
            halt(1)
    end.

scenarios(Text) ->
    Lines = [string:lexemes(Line, " ") || Line <- string:lexemes(Text, "\n")],
    lists:reverse([{Name, lists:reverse(Steps)} || {Name, Steps} <- lists:foldl(fun scenario/2, [], Lines)]).

scenario(["==", Name], Done) -> [{Name, []} | Done];
scenario(Step, [{Name, Steps} | Done]) -> [{Name, [Step | Steps]} | Done].

%% Those that part or restart nodes have a peer for themselves, one after the other; the others share one.
play_all(All) ->
    {Alone, Together} = lists:partition(fun({_, Steps}) -> lists:any(fun disturbs/1, Steps) end, All),
    Self = self(),
    Lanes = [start_peer("127.0.0." ++ integer_to_list(N)) || N <- [2, 3, 4, 5]],
    [Shared | Own] = Lanes,
    Workers =
        [spawn_monitor(fun() -> lists:foldl(fun(Each, _) -> play(Self, Shared, Each) end, none, Part) end)
         || {_, Part} <- deal(lists:seq(1, ?TOGETHER), Together)] ++
        [spawn_monitor(fun() -> stop(lists:foldl(fun(Each, Peer) -> play(Self, Peer, Each) end, Peer, Part)) end)
         || {Peer, Part} <- deal(Own, Alone)],
    Outcomes = gather([Monitor || {_, Monitor} <- Workers], []),
    stop(Shared),
    [io:format("~ts\t~ts~n", [Name, json(maps:get(Name, maps:from_list(Outcomes)))]) || {Name, _} <- All].

disturbs([Word | _]) -> lists:member(Word, ["lose", "crash", "restart"]).

deal(Peers, Scenarios) ->
    Count = length(Peers),
    Numbered = lists:enumerate(Scenarios),
    [{Peer, [Each || {M, Each} <- Numbered, M rem Count =:= N - 1]} || {N, Peer} <- lists:enumerate(Peers)].

gather([], Outcomes) -> Outcomes;
gather(Workers, Outcomes) ->
    receive
        {outcome, Name, Outcome} -> gather(Workers, [{Name, Outcome} | Outcomes]);
        {'DOWN', Monitor, process, _, normal} -> gather(lists:delete(Monitor, Workers), Outcomes);
        {'DOWN', _, process, _, Reason} -> error(Reason)
    end.

json(Strings) -> ["[", lists:join(", ", [[$", S, $"] || S <- Strings]), "]"].

%% ── nodes ───────────────────────────────────────────────────────────────────────────────────────

boot() ->
    Self = self(),
    spawn(fun() ->
        ets:new(judge_rows, [named_table, public, ordered_set]),
        register(judge_keeper, self()),
        {ok, _} = pg:start_link(),
        Self ! booted,
        keep(#{})
    end),
    receive booted -> ok end.

%% Notes how every puppet of this node ends.
keep(Watched) ->
    receive
        {watch, From, Name, Label, Pid} ->
            Monitor = monitor(process, Pid),
            From ! {watched, Pid},
            keep(Watched#{Monitor => {Name, Label}});
        {'DOWN', Monitor, process, _, Reason} ->
            {{Name, Label}, Rest} = maps:take(Monitor, Watched),
            row(Name, Label, {ended, Reason}),
            keep(Rest)
    end.

row(Name, Label, Event) ->
    ets:insert(judge_rows, {erlang:unique_integer([monotonic]), Name, Label, Event}).

rows(Name) -> [{Label, Event} || [Label, Event] <- ets:match(judge_rows, {'_', Name, '$1', '$2'})].

born(Name, Label, Pid) ->
    row(Name, Label, {born, Pid}),
    judge_keeper ! {watch, self(), Name, Label, Pid},
    receive {watched, Pid} -> ok end.

alive(Pid) -> is_process_alive(Pid).

start_peer(Ip) ->
    {ok, [[Port]]} = init:get_argument(erl_epmd_port),
    Address = "{" ++ lists:flatten(lists:join(",", string:lexemes(Ip, "."))) ++ "}",
    {ok, Control, Node} = peer:start(#{
        name => "there", host => Ip, longnames => true, connection => standard_io,
        args => ["-start_epmd", "false", "-erl_epmd_port", Port,
                 "-kernel", "inet_dist_use_interface", Address, "dist_auto_connect", "never", "connect_all", "false", "prevent_overlapping_partitions", "false",
                 "logger_level", "none", "-setcookie", atom_to_list(erlang:get_cookie())]
    }),
    Code = persistent_term:get(judge_code),
    {module, judge} = peer:call(Control, code, load_binary, [judge, "judge.erl", Code]),
    peer:call(Control, persistent_term, put, [judge_code, Code]),
    ok = peer:call(Control, judge, boot, []),
    Peer = #{ip => Ip, control => Control, node => Node},
    join(Peer),
    Peer.

join(#{node := Node} = Peer) ->
    net_kernel:connect_node(Node),
    until(fun() -> lists:member(Node, nodes()) andalso lists:member(node(), peer_nodes(Peer)) end).

part(#{node := Node} = Peer) ->
    erlang:disconnect_node(Node),
    until(fun() -> not lists:member(Node, nodes()) andalso not lists:member(node(), peer_nodes(Peer)) end).

stop(#{control := Control}) -> peer:stop(Control).

gone(#{node := Node} = Peer) ->
    stop(Peer),
    until(fun() -> not lists:member(Node, nodes()) end).

peer_nodes(#{control := Control}) -> peer:call(Control, erlang, nodes, []).

until(Fact) -> until(Fact, 500).
until(_, 0) -> error(never_came_true);
until(Fact, Tries) ->
    case Fact() of
        true -> ok;
        false -> timer:sleep(10), until(Fact, Tries - 1)
    end.

%% ── one scenario ────────────────────────────────────────────────────────────────────────────────

play(Collector, Peer, {Name, Steps}) ->
    First = #{name => Name, peer => Peer, homes => #{}, plans => #{}, kept => [], lost => []},
    try
        Last = lists:foldl(fun step/2, First, Steps ++ [["settle"]]),
        {outcome(Last), maps:get(peer, Last)}
    of
        {Outcome, #{control := none, ip := Ip}} ->
            Collector ! {outcome, Name, Outcome},
            start_peer(Ip);
        {Outcome, #{node := Node} = After} ->
            Collector ! {outcome, Name, Outcome},
            lists:member(Node, nodes()) orelse join(After),
            After
    catch
        Class:Reason ->
            Said = io_lib:format("could not be played: ~0p ~0P", [Class, Reason, 12]),
            Collector ! {outcome, Name, [re:replace(Said, "[\"\\\\]", "'", [global])]},
            again(Peer)
    end.

%% After a scenario that could not be played: as the next one expects it.
again(#{ip := Ip, control := Control, node := Node} = Peer) ->
    case is_process_alive(Control) of
        false -> start_peer(Ip);
        true -> lists:member(Node, nodes()) orelse join(Peer), Peer
    end.

step(["settle"], #{peer := #{control := Control}} = State) ->
    settled(Control),
    settled(Control),
    State;
step(["wait", Seconds], State) -> timer:sleep(ms(Seconds)), State;
step(["lose"], #{peer := Peer} = State) -> part(Peer), State;
step(["rejoin"], #{peer := Peer} = State) -> join(Peer), State;
step(["crash"], State) -> crashed(State);
step(["restart"], State) ->
    #{peer := #{ip := Ip}} = Crashed = crashed(State),
    Crashed#{peer := start_peer(Ip)};
step(["spawn", Label, Home | Options], #{name := Name, homes := Homes} = State) ->
    on(Home, new, [Name, Label, Options], State),
    State#{homes := Homes#{Label => Home}};
step(["tree", Label, Strategy, Most, Period | Children], #{plans := Plans} = State) ->
    Plan = {list_to_atom(Strategy), list_to_integer(Most), list_to_integer(Period),
            [string:split(Child, ":", all) || Child <- Children]},
    State#{plans := Plans#{Label => Plan}};
step(["members", Group, Home], #{name := Name} = State) ->
    on(Home, groups, [Name, Group, Home], State),
    State;
step(["unordered"], State) -> State#{unordered => true};
step(["~" ++ Label | Words], State) -> told([Label | Words], nowait, State);
step(Words, State) -> told(Words, wait, State).

%% Time for what is under way, and a sign that the other node had its share of a busy machine.
settled(none) -> timer:sleep(?SETTLE_MS);
settled(Control) ->
    timer:sleep(?SETTLE_MS),
    peer:call(Control, erlang, node, [], ?STUCK_MS).

told([Label | Words], Wait, #{homes := Homes} = State) ->
    Env = env(State),
    Pid = maps:get(Label, Env),
    [] = on(maps:get(Label, Homes, "here"), order, [Pid, commands(Words, []), Env, Wait], State),
    State.

commands([], Command) -> [lists:reverse(Command)];
commands([";" | Words], Command) -> [lists:reverse(Command) | commands(Words, [])];
commands([Word | Words], Command) -> commands(Words, [Word | Command]).

crashed(#{peer := Peer, homes := Homes, kept := Kept, lost := Lost, name := Name} = State) ->
    Rows = on("there", rows, [Name], State),
    gone(Peer),
    Pids = [Pid || {_, {born, Pid}} <- Rows],
    State#{kept := Kept ++ Rows, lost := Lost ++ Pids, peer := Peer#{control := none},
           homes := maps:filter(fun(_, Home) -> Home =/= "there" end, Homes)}.

on("here", Function, Args, _) -> apply(?MODULE, Function, Args);
on("there", Function, Args, #{peer := #{control := Control}}) ->
    peer:call(Control, ?MODULE, Function, Args, ?STUCK_MS).

all_rows(#{name := Name, kept := Kept, peer := #{control := Control}} = State) ->
    There = case Control of none -> []; _ -> on("there", rows, [Name], State) end,
    rows(Name) ++ Kept ++ There.

%% What a puppet needs to know: the latest pid under each label, the nodes, the plans of supervisors.
env(#{name := Name, plans := Plans, peer := #{node := There}} = State) ->
    Pids = maps:from_list([{Label, Pid} || {Label, {born, Pid}} <- all_rows(State)]),
    Pids#{name => Name, plans => Plans, "here" => node(), "there" => There, "away" => 'no@127.0.0.99'}.

outcome(#{peer := Peer, lost := Lost} = State) ->
    Rows = all_rows(State),
    Labels = maps:from_list([{Pid, Label} || {Label, {born, Pid}} <- Rows]),
    Nodes = #{node() => "here", maps:get(node, Peer) => "there", 'no@127.0.0.99' => "away"},
    lists:append([
        begin
            Said = [text(Event, Labels, Nodes) || {L, Event} <- Rows, L =:= Label],
            Texts = [T || T <- Said, T =/= none],
            Sorted = case State of #{unordered := true} -> lists:sort(Texts); _ -> Texts end,
            [[Label, " ", T] || T <- Sorted ++ lives(Label, Rows, Lost, State)]
        end
     || Label <- lists:usort([L || {L, _} <- Rows])]).

lives(Label, Rows, Lost, State) ->
    case lists:reverse([Pid || {L, {born, Pid}} <- Rows, L =:= Label]) of
        [] -> [];
        [Pid | _] ->
            Home = case node(Pid) =:= node() of true -> "here"; false -> "there" end,
            case not lists:member(Pid, Lost) andalso on(Home, alive, [Pid], State) of
                true -> ["lives"];
                false -> []
            end
    end.

text({born, _}, _, _) -> none;
text({down, Target, Reason}, Labels, Nodes) ->
    ["down ", target(Target, Labels, Nodes), " ", reason(Reason)];
text({exit, Pid, Reason}, Labels, _) -> ["exit ", maps:get(Pid, Labels, "stranger"), " ", reason(Reason)];
text({ended, Reason}, _, _) -> ["ended ", reason(Reason)];
text({members, Group, Pids}, Labels, _) ->
    [Group, " has"] ++ [[" ", L] || L <- lists:sort([maps:get(Pid, Labels) || Pid <- Pids])];
text({local, Group, Pids}, Labels, _) ->
    [Group, " has here"] ++ [[" ", L] || L <- lists:sort([maps:get(Pid, Labels) || Pid <- Pids])];
text({call, {down, Reason}}, _, _) -> ["call down ", reason(Reason)];
text({says, Text}, _, _) -> Text;
text({Word, Text}, _, _) -> [atom_to_list(Word), " ", Text].

target({Registered, Node}, _, Nodes) ->
    ["name:", lists:last(string:split(atom_to_list(Registered), "#")), "@", maps:get(Node, Nodes)];
target(Pid, Labels, _) -> maps:get(Pid, Labels).

reason(Reason) when is_atom(Reason) -> atom_to_list(Reason);
reason({shutdown, Why}) -> ["shutdown:", atom_to_list(Why)];
reason({Reason, [{_, _, _, _} | _]}) -> ["crash ", reason(Reason)];
reason(Reason) -> io_lib:format("~0p", [Reason]).

to_reason(Word) ->
    case string:split(Word, ":") of
        ["shutdown", Why] -> {shutdown, list_to_atom(Why)};
        [Word] -> list_to_atom(Word)
    end.

ms(Seconds) -> round(1000 * try list_to_float(Seconds) catch _:_ -> list_to_integer(Seconds) end).

%% ── puppets ─────────────────────────────────────────────────────────────────────────────────────

new(Name, Label, Options) ->
    Self = self(),
    Pid = spawn(fun() ->
        process_flag(trap_exit, lists:member("trap", Options)),
        case Options of
            ["named", As | _] -> register(registered(Name, As), self());
            [_, "named", As | _] -> register(registered(Name, As), self());
            _ -> ok
        end,
        born(Name, Label, self()),
        Self ! {ready, self()},
        puppet(#{name => Name, label => Label})
    end),
    receive {ready, Pid} -> ok end.

registered(Name, As) -> list_to_atom(Name ++ "#" ++ As).

%% Runs on the node of the puppet, so that it works without a connection.
order(Pid, Commands, Env, nowait) -> Pid ! {do, none, Commands, Env}, [];
order(Pid, Commands, Env, wait) ->
    Ref = monitor(process, Pid),
    Pid ! {do, {self(), Ref}, Commands, Env},
    receive
        {done, Ref} -> demonitor(Ref, [flush]), [];
        {'DOWN', Ref, process, Pid, noproc} -> error({script, tells_the_dead, Commands});
        {'DOWN', Ref, process, Pid, _} -> []
    after ?STUCK_MS -> error({script, stuck, Commands})
    end.

puppet(State) ->
    receive
        {do, Asker, Commands, Env} ->
            Done = lists:foldl(fun(Command, S) -> do(Command, Env, S) end, State, Commands),
            case Asker of
                none -> ok;
                {From, Ref} -> From ! {done, Ref}
            end,
            puppet(Done);
        {'$gen_call', From, Request} ->
            note(State, {asked, Request}),
            puppet(serve(Request, From, State));
        {'DOWN', _, process, Target, Reason} ->
            note(State, {down, Target, Reason}),
            puppet(State);
        {'EXIT', Pid, Reason} ->
            told_to_exit(Pid, Reason, State),
            puppet(State);
        {text, Text} ->
            note(State, {got, Text}),
            puppet(State)
    end.

%% A tidy child of a supervisor does what gen_server does when its parent ends it.
told_to_exit(Parent, Reason, #{parent := Parent, manner := Manner} = State)
  when Manner =:= "tidy"; Manner =:= "slow" ->
    Manner =:= "slow" andalso timer:sleep(5500),
    row(maps:get(name, State), "log", {says, ["-", maps:get(label, State), " ", reason(Reason)]}),
    exit(Reason);
told_to_exit(Pid, Reason, State) ->
    note(State, {exit, Pid, Reason}).

note(#{name := Name, label := Label}, Event) -> row(Name, Label, Event).

serve("echo", From, State) -> gen_server:reply(From, "echo"), State;
serve("keep", From, State) -> State#{kept => From};
serve("last", From, _) -> gen_server:reply(From, "last"), exit(normal);
serve("raise:" ++ Reason, _, _) -> exit(to_reason(Reason));
serve("crash", _, _) -> error(boom).

do([], _, State) -> State;
do(["link", X], Env, State) -> link(pid(X, Env)), State;
do(["unlink", X], Env, State) -> unlink(pid(X, Env)), State;
do(["unlink_flush", X], Env, State) ->
    Pid = pid(X, Env),
    unlink(Pid),
    receive {'EXIT', Pid, _} -> ok after 0 -> ok end,
    State;
do(["monitor", X], Env, State) -> State#{ref => monitor(process, target_of(X, Env))};
do(["demonitor"], _, #{ref := Ref} = State) -> demonitor(Ref), State;
do(["demonitor_flush"], _, #{ref := Ref} = State) -> demonitor(Ref, [flush]), State;
do(["exit", X, Reason], Env, State) -> exit(pid(X, Env), to_reason(Reason)), State;
do(["trap", OnOff], _, State) -> process_flag(trap_exit, OnOff =:= "on"), State;
do(["return"], _, _) -> exit(normal);
do(["raise", Reason], _, _) -> exit(to_reason(Reason));
do(["crash"], _, _) -> error(boom);
do(["pause", Seconds], _, State) -> timer:sleep(ms(Seconds)), State;
do(["send", X, Text], Env, State) -> target_of(X, Env) ! {text, Text}, State;
do(["post", X, Text], Env, State) ->
    target_of(X, Env) ! {text, Text},
    note(State, {says, "post ok"}),
    State;
do(["register", As], #{name := Name}, State) -> register(registered(Name, As), self()), State;
do(["unregister", As], #{name := Name}, State) -> unregister(registered(Name, As)), State;
do(["spawn_link", Label | Words], Env, State) -> bear(spawn_link, Label, Words, Env), State;
do(["spawn_monitor", Label | Words], Env, State) ->
    {_, Ref} = bear(spawn_monitor, Label, Words, Env),
    State#{ref => Ref};
do(["call", X, Request], Env, State) -> do(["call", X, Request, "5"], Env, State);
do(["call", X, Request, Seconds], Env, State) ->
    note(State, {call, call(target_of(X, Env), Request, ms(Seconds))}),
    State;
do(["reply", Text], _, #{kept := From} = State) -> gen_server:reply(From, Text), State;
do(["start", Label], #{name := Name, plans := Plans} = Env, State) ->
    {ok, _} = start_tree(Name, {Label, maps:get(Label, Plans)}, Env),
    State;
do(["ask", Tree | Request], Env, State) ->
    note(State, {says, ask(maps:get(Tree, Env), Request, Env)}),
    State;
do(["join", Group | Who], #{name := Name} = Env, State) ->
    pg:join({Name, Group}, pids(Who, Env)),
    State;
do(["leave", Group | Who], #{name := Name} = Env, State) ->
    note(State, {says, ["leave ", atom_to_list(pg:leave({Name, Group}, pids(Who, Env)))]}),
    State.

%% The child waits until the keeper watches it; its parent does not wait.
bear(How, Label, Words, #{name := Name} = Env) ->
    Life = fun() ->
        born(Name, Label, self()),
        puppet(do(Words, Env, #{name => Name, label => Label}))
    end,
    apply(erlang, How, [Life]).

pids([], _) -> self();
pids([X], Env) -> pid(X, Env).

pid("me", _) -> self();
pid(Label, Env) -> maps:get(Label, Env).

target_of("name:" ++ Rest, #{name := Name} = Env) ->
    [As, Place] = string:split(Rest, "@"),
    {registered(Name, As), maps:get(Place, Env)};
target_of(X, Env) -> pid(X, Env).

call(Target, Request, Timeout) ->
    try gen_server:call(Target, Request, Timeout) of
        Reply -> ["reply ", Reply]
    catch
        exit:{timeout, _} -> "timeout";
        exit:{noproc, _} -> "noproc";
        exit:{{nodedown, _}, _} -> "nodedown";
        exit:{calling_self, _} -> "calling_self";
        exit:{Reason, {gen_server, call, _}} -> {down, Reason}
    end.

%% ── supervisors ─────────────────────────────────────────────────────────────────────────────────

start_tree(Name, {Label, Plan}, Env) ->
    {ok, Pid} = supervisor:start_link(?MODULE, {Plan, Env}),
    born(Name, Label, Pid),
    {ok, Pid}.

init({{Strategy, Most, Period, Children}, Env}) ->
    Flags = #{strategy => Strategy, intensity => Most, period => Period},
    {ok, {Flags, [spec(Child, Env) || Child <- Children]}}.

%% name:restart:shutdown:manner
spec([Label, Restart, Shutdown, "sup"], #{name := Name, plans := Plans} = Env) ->
    Start = {?MODULE, start_tree, [Name, {Label, maps:get(Label, Plans)}, Env]},
    shutdown(Shutdown, #{id => Label, restart => list_to_atom(Restart), start => Start, type => supervisor});
spec([Label, Restart, Shutdown, Manner], #{name := Name}) ->
    Start = {?MODULE, start_child, [Name, Label, Manner]},
    shutdown(Shutdown, #{id => Label, restart => list_to_atom(Restart), start => Start}).

shutdown("default", Spec) -> Spec;
shutdown("kill", Spec) -> Spec#{shutdown => brutal_kill};
shutdown(Seconds, Spec) -> Spec#{shutdown => ms(Seconds)}.

start_child(Name, Label, Manner) -> proc_lib:start_link(?MODULE, init_child, [self(), Name, Label, Manner]).

init_child(Parent, Name, Label, Manner) ->
    case string:split(Manner, "=") of
        ["named", As] ->
            case whereis(registered(Name, As)) of
                undefined -> register(registered(Name, As), self());
                Owner -> proc_lib:init_ack(Parent, {error, {already_started, Owner}}), exit(normal)
            end;
        _ -> ok
    end,
    process_flag(trap_exit, lists:member(Manner, ["tidy", "slow", "stubborn"])),
    born(Name, Label, self()),
    row(Name, "log", {says, ["+", Label]}),
    proc_lib:init_ack(Parent, {ok, self()}),
    puppet(#{name => Name, label => Label, parent => Parent, manner => Manner}).

ask(Tree, ["which"], _) ->
    Shown = fun(Pid) when is_pid(Pid) -> "runs"; (_) -> "none" end,
    ["which"] ++ lists:sort([[" ", Id, ":", Shown(Pid)] || {Id, Pid, _, _} <- supervisor:which_children(Tree)]);
ask(Tree, ["count"], _) ->
    Counts = supervisor:count_children(Tree),
    ["count"] ++ [[" ", integer_to_list(proplists:get_value(What, Counts))]
                  || What <- [specs, active, supervisors, workers]];
ask(Tree, ["terminate", Id], _) -> ["terminate ", asked(supervisor:terminate_child(Tree, Id))];
ask(Tree, ["restart", Id], _) -> ["restart ", asked(supervisor:restart_child(Tree, Id))];
ask(Tree, ["delete", Id], _) -> ["delete ", asked(supervisor:delete_child(Tree, Id))];
ask(Tree, ["add", Child], Env) ->
    ["add ", asked(supervisor:start_child(Tree, spec(string:split(Child, ":", all), Env)))].

asked(ok) -> "ok";
asked({ok, Pid}) when is_pid(Pid) -> "ok";
asked({error, {already_started, _}}) -> "already_started";
asked({error, Why}) -> atom_to_list(Why).

%% ── groups ──────────────────────────────────────────────────────────────────────────────────────

groups(Name, Group, Home) ->
    row(Name, "at " ++ Home, {members, Group, pg:get_members({Name, Group})}),
    row(Name, "at " ++ Home, {local, Group, pg:get_local_members({Name, Group})}).

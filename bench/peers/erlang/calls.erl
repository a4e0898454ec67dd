%% Two roles for `bench/src/subjects/erlang.rs`. `servers` has servers that say back what they are
%% asked. `callers` calls them from another node, as it is told on its one connection: a line
%% `one|many|mixed IN_FLIGHT MILLIS`, answered by `NANOS COUNT` and each call's time, as
%% `bench/src/subjects/foreign.rs` describes it.
-module(calls).
-behaviour(gen_server).
-export([servers/0, callers/0, pump/1]).
-export([init/1, handle_call/3, handle_cast/2]).

-define(SERVERS, 256).
%% From one large message to the next, in milliseconds, and its bytes: as in
%% `bench/src/subjects/mixed.rs`.
-define(EVERY, 40).
-define(LARGE, 1048576).
-define(PAYLOAD, <<"0123456789abcdef0123456789abcdef">>).

servers() ->
    [{ok, _} = gen_server:start({local, name(N)}, ?MODULE, [], []) || N <- lists:seq(1, ?SERVERS)],
    io:format("ready~n").

name(N) -> list_to_atom("echo" ++ integer_to_list(N)).

init([]) -> {ok, nothing}.

handle_call(Text, _From, State) -> {reply, <<"Echo: ", Text/binary>>, State}.

handle_cast(_Message, State) -> {noreply, State}.

callers() ->
    Servers = 'servers@127.0.0.1',
    pong = net_adm:ping(Servers),
    {ok, Listener} =
        gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}, binary, {packet, line}, {active, false},
                           {nodelay, true}]),
    {ok, Port} = inet:port(Listener),
    io:format("ready 127.0.0.1:~b~n", [Port]),
    {ok, Socket} = gen_tcp:accept(Listener),
    serve(Socket, Servers).

serve(Socket, Servers) ->
    case gen_tcp:recv(Socket, 0) of
        {ok, Line} ->
            [Mode, InFlight, Millis] = string:lexemes(string:trim(Line), " "),
            {Took, Times} = run(Mode, binary_to_integer(InFlight), binary_to_integer(Millis), Servers),
            Head = io_lib:format("~b ~b~n", [Took, length(Times)]),
            ok = gen_tcp:send(Socket, [Head, [<<Nanos:32/little>> || Nanos <- Times]]),
            serve(Socket, Servers);
        {error, closed} ->
            halt()
    end.

%% Large messages come from the servers' node meanwhile, over the one connection of both.
run(<<"mixed">>, InFlight, Millis, Servers) ->
    Sink = spawn_link(fun() -> sink(0) end),
    Pump = spawn_link(Servers, ?MODULE, pump, [Sink]),
    Result = run(<<"many">>, InFlight, Millis, Servers),
    unlink(Pump),
    exit(Pump, kill),
    Sink ! {count, self()},
    receive {count, Count} -> true = Count * ?EVERY * 2 >= Millis end,
    Result;
run(Mode, InFlight, Millis, Servers) ->
    Begun = now_nanos(),
    End = Begun + Millis * 1000000,
    Self = self(),
    Callers = [spawn_link(fun() -> Self ! {self(), call(server(Mode, N, Servers), End, [])} end)
               || N <- lists:seq(0, InFlight - 1)],
    Times = lists:append([receive {Caller, Each} -> Each end || Caller <- Callers]),
    {now_nanos() - Begun, Times}.

pump(Sink) -> pump(Sink, binary:copy(<<"x">>, ?LARGE), erlang:monotonic_time(millisecond)).

pump(Sink, Large, Due) ->
    Sink ! Large,
    Next = Due + ?EVERY,
    timer:sleep(max(0, Next - erlang:monotonic_time(millisecond))),
    pump(Sink, Large, Next).

sink(Count) ->
    receive
        {count, To} -> To ! {count, Count};
        Large when byte_size(Large) =:= ?LARGE -> sink(Count + 1)
    end.

server(<<"one">>, _, Servers) -> {name(1), Servers};
server(<<"many">>, N, Servers) -> {name(N rem ?SERVERS + 1), Servers}.

call(Server, End, Times) ->
    Begun = now_nanos(),
    case Begun < End of
        true ->
            <<"Echo: ", Text/binary>> = gen_server:call(Server, ?PAYLOAD),
            Text = ?PAYLOAD,
            call(Server, End, [now_nanos() - Begun | Times]);
        false ->
            Times
    end.

now_nanos() -> erlang:monotonic_time(nanosecond).

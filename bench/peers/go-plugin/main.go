// A host and its plugin with hashicorp/go-plugin, in one program as that library has it. The host
// calls the plugin as it is told on its one connection; bench/src/subjects/foreign.rs describes how.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	payload = "0123456789abcdef0123456789abcdef"
	method  = "/demo.v1.Echo/Say"
	role    = "plugin"
)

var handshake = plugin.HandshakeConfig{
	ProtocolVersion: 1, MagicCookieKey: "BENCH_PLUGIN", MagicCookieValue: "echo",
}

// echo is demo.v1.Echo/Say: both messages have one text in field 1, as StringValue has.
type echo struct{ plugin.Plugin }

func (echo) GRPCServer(_ *plugin.GRPCBroker, server *grpc.Server) error {
	say := func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		asked := new(wrapperspb.StringValue)
		if err := decode(asked); err != nil {
			return nil, err
		}
		return wrapperspb.String("Echo: " + asked.Value), nil
	}
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "demo.v1.Echo",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Say", Handler: say}},
	}, struct{}{})
	return nil
}

func (echo) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return conn, nil
}

func main() {
	plugins := map[string]plugin.Plugin{"echo": echo{}}
	if len(os.Args) > 1 && os.Args[1] == role {
		plugin.Serve(&plugin.ServeConfig{
			HandshakeConfig: handshake, Plugins: plugins, GRPCServer: plugin.DefaultGRPCServer,
			Logger: hclog.NewNullLogger(),
		})
		return
	}
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: handshake, Plugins: plugins, Cmd: exec.Command(os.Args[0], role),
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC}, Logger: hclog.NewNullLogger(),
	})
	defer client.Kill()
	if err := serve(client); err != nil {
		log.Print(err)
	}
}

func serve(client *plugin.Client) error {
	protocol, err := client.Client()
	if err != nil {
		return err
	}
	dispensed, err := protocol.Dispense("echo")
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println("ready", listener.Addr())
	control, err := listener.Accept()
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(control)
	for lines.Scan() {
		var mode string
		var inFlight, millis int
		if _, err := fmt.Sscan(lines.Text(), &mode, &inFlight, &millis); err != nil {
			return err
		}
		answer, err := run(dispensed.(*grpc.ClientConn), inFlight, time.Duration(millis)*time.Millisecond)
		if err != nil {
			return err
		}
		if _, err := control.Write(answer); err != nil {
			return err
		}
	}
	return lines.Err()
}

// run keeps calls going and gives what there is to answer.
func run(conn *grpc.ClientConn, inFlight int, duration time.Duration) ([]byte, error) {
	begun := time.Now()
	times, errs := make([][]byte, inFlight), make([]error, inFlight)
	var workers sync.WaitGroup
	for worker := range inFlight {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for errs[worker] == nil && time.Since(begun) < duration {
				var took time.Duration
				took, errs[worker] = call(conn)
				times[worker] = binary.LittleEndian.AppendUint32(times[worker], uint32(took))
			}
		}()
	}
	workers.Wait()
	took := time.Since(begun)
	var all []byte
	for worker := range inFlight {
		if errs[worker] != nil {
			return nil, errs[worker]
		}
		all = append(all, times[worker]...)
	}
	return append([]byte(fmt.Sprintf("%d %d\n", took.Nanoseconds(), len(all)/4)), all...), nil
}

func call(conn *grpc.ClientConn) (time.Duration, error) {
	begun, answer := time.Now(), new(wrapperspb.StringValue)
	err := conn.Invoke(context.Background(), method, wrapperspb.String(payload), answer)
	if err == nil && answer.Value != "Echo: "+payload {
		err = fmt.Errorf("an answer of another content: %q", answer.Value)
	}
	return time.Since(begun), err
}

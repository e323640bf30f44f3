// The cases of clients/interop.md that are marked "wire", with nothing but generated stubs.
//
//	client ADDRESS CUT_ADDRESS [CASE...]
//	client --list
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	inference "headrace/inference/v2"
	stream "headrace/stream/v1"
)

const (
	longest = 60 * time.Second
	endless = 50_000_000
	most    = 64 << 20 // bytes of a message
)

type clients struct {
	infer  inference.GRPCInferenceServiceClient
	stream stream.SensorStreamClient
}

type tensor struct {
	name, datatype string
	shape          []int64
	raw            []byte
}

var order = []string{
	"datatype_INT64", "datatype_FP32", "datatype_BYTES", "big_message", "error_unknown_model",
	"error_wrong_datatype", "deadline", "cancel", "stream_requests", "sensor_windows",
}

var cases = map[string]func(context.Context, clients) error{
	"datatype_INT64": func(ctx context.Context, c clients) error {
		values := []int64{0, -(1 << 40), math.MinInt64, math.MaxInt64}
		return identity(ctx, c, tensor{"x", "INT64", []int64{2, 2}, pack(values)})
	},
	"datatype_FP32": func(ctx context.Context, c clients) error {
		values := []float32{-1.5, math.SmallestNonzeroFloat32, float32(math.NaN()), float32(math.Inf(1))}
		return identity(ctx, c, tensor{"x", "FP32", []int64{2, 2}, pack(values)})
	},
	"datatype_BYTES": func(ctx context.Context, c clients) error {
		var raw []byte
		for _, text := range []string{"", "zwölf", "\x00a", "one"} {
			raw = append(append(raw, pack(uint32(len(text)))...), text...)
		}
		return identity(ctx, c, tensor{"x", "BYTES", []int64{2, 2}, raw})
	},
	"big_message": func(ctx context.Context, c clients) error {
		values := make([]float32, 4<<20)
		for i := range values {
			values[i] = float32(i)
		}
		return identity(ctx, c, tensor{"x", "FP32", []int64{4, 1 << 20}, pack(values)})
	},
	"error_unknown_model": func(ctx context.Context, c clients) error {
		_, err := c.infer.ModelInfer(ctx, request("nothing", pair(1)))
		return refused(err, codes.NotFound, "MODEL_NOT_FOUND", "'nothing'")
	},
	"error_wrong_datatype": func(ctx context.Context, c clients) error {
		wrong := tensor{"x", "FP64", []int64{1, 2}, make([]byte, 16)}
		_, err := c.infer.ModelInfer(ctx, request("double", wrong))
		return refused(err, codes.InvalidArgument, "INVALID_INPUT", "'x'", "FP32", "FP64")
	},
	"deadline":        deadline,
	"cancel":          cancel,
	"stream_requests": streamRequests,
	"sensor_windows":  sensorWindows,
}

func pack(values interface{}) []byte {
	var packed bytes.Buffer
	if err := binary.Write(&packed, binary.LittleEndian, values); err != nil {
		panic(err)
	}
	return packed.Bytes()
}

func pair(value float32) tensor {
	return tensor{"x", "FP32", []int64{1, 2}, pack([]float32{value, value})}
}

func request(model string, inputs ...tensor) *inference.ModelInferRequest {
	made := &inference.ModelInferRequest{ModelName: model}
	for _, input := range inputs {
		made.Inputs = append(made.Inputs, &inference.ModelInferRequest_InferInputTensor{
			Name: input.name, Datatype: input.datatype, Shape: input.shape,
		})
		made.RawInputContents = append(made.RawInputContents, input.raw)
	}
	return made
}

// identity asks whether a tensor comes back bit for bit.
func identity(ctx context.Context, c clients, value tensor) error {
	answer, err := c.infer.ModelInfer(ctx, request("identity_"+value.datatype, value))
	if err != nil {
		return err
	}
	output := answer.Outputs[0]
	if output.Datatype != value.datatype || fmt.Sprint(output.Shape) != fmt.Sprint(value.shape) {
		return fmt.Errorf("got %s %v", output.Datatype, output.Shape)
	}
	return same(answer.RawOutputContents[0], value.raw)
}

func same(got, expected []byte) error {
	if !bytes.Equal(got, expected) {
		return fmt.Errorf("expected %.100x, got %.100x", expected, got)
	}
	return nil
}

// refused asks whether a call failed so, with these words in its message.
func refused(err error, code codes.Code, reason string, words ...string) error {
	told := status.Convert(err)
	if told.Code() != code {
		return fmt.Errorf("expected %v, got %v", code, err)
	}
	for _, word := range words {
		if !strings.Contains(told.Message(), word) {
			return fmt.Errorf("%s is not in: %s", word, told.Message())
		}
	}
	for _, detail := range told.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.Reason == reason {
			return nil
		}
	}
	return fmt.Errorf("no reason %s in %v", reason, told.Details())
}

// lab is a request of one row, whose answer is y = [[3]].
func lab(model string, steps int64) *inference.ModelInferRequest {
	return request(model,
		tensor{"x", "FP32", []int64{1, 1}, pack(float32(1))},
		tensor{"steps", "INT64", []int64{1}, pack(steps)},
		tensor{"index", "INT64", []int64{1}, pack(int64(0))})
}

// next asks whether a model answers now.
func next(ctx context.Context, c clients, model string) error {
	answer, err := c.infer.ModelInfer(ctx, lab(model, 0))
	if err != nil {
		return err
	}
	return same(answer.RawOutputContents[0], pack(float32(3)))
}

func deadline(ctx context.Context, c clients) error {
	short, stop := context.WithTimeout(ctx, 300*time.Millisecond)
	defer stop()
	_, err := c.infer.ModelInfer(short, lab("lab_deadline", endless))
	if status.Code(err) != codes.DeadlineExceeded {
		return fmt.Errorf("expected DeadlineExceeded, got %v", err)
	}
	return next(ctx, c, "lab_deadline")
}

func cancel(ctx context.Context, c clients) error {
	leaving, leave := context.WithCancel(ctx)
	time.AfterFunc(300*time.Millisecond, leave)
	_, err := c.infer.ModelInfer(leaving, lab("lab_cancel", endless))
	if status.Code(err) != codes.Canceled {
		return fmt.Errorf("expected Canceled, got %v", err)
	}
	return next(ctx, c, "lab_cancel")
}

func streamRequests(ctx context.Context, c clients) error {
	call, err := c.infer.ModelStreamInfer(ctx)
	if err != nil {
		return err
	}
	for number := 0; number < 50; number++ {
		asked := request("double", pair(float32(number)))
		asked.Id = fmt.Sprint(number)
		if err := call.Send(asked); err != nil {
			return err
		}
	}
	if err := call.CloseSend(); err != nil {
		return err
	}
	seen := map[string]bool{}
	for {
		answer, err := call.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if answer.ErrorMessage != "" {
			return fmt.Errorf("refused: %s", answer.ErrorMessage)
		}
		var number float32
		fmt.Sscan(answer.InferResponse.Id, &number)
		if err := same(answer.InferResponse.RawOutputContents[0], pair(2*number).raw); err != nil {
			return err
		}
		seen[answer.InferResponse.Id] = true
	}
	if len(seen) != 50 {
		return fmt.Errorf("expected 50 answers, got %d", len(seen))
	}
	return nil
}

func sensorWindows(ctx context.Context, c clients) error {
	call, err := c.stream.Stream(ctx)
	if err != nil {
		return err
	}
	signal := make([]float32, 100)
	doubled := make([]float32, 100)
	for i := range signal {
		signal[i], doubled[i] = float32(i), float32(2*i)
	}
	opening := &stream.Open{Model: "double", Window: 8, Hop: 4, SampleRateHz: 100, Signals: []*stream.Signal{{}}}
	commands := []*stream.Command{{Handle: 1, Command: &stream.Command_Open{Open: opening}}}
	for at := 0; at < 100; at += 7 {
		end := at + 7
		if end > 100 {
			end = 100
		}
		chunk := &stream.Chunk{Sequence: uint64(at), Data: [][]byte{pack(signal[at:end])}}
		commands = append(commands, &stream.Command{Handle: 1, Command: &stream.Command_Chunk{Chunk: chunk}})
	}
	commands = append(commands, &stream.Command{Handle: 1, Command: &stream.Command_Close{Close: &stream.Close{}}})
	if err := call.Send(&stream.StreamRequest{Commands: commands}); err != nil {
		return err
	}
	for window := uint64(0); ; {
		response, err := call.Recv()
		if err != nil {
			return err
		}
		for _, event := range response.Events {
			switch told := event.Event.(type) {
			case *stream.Event_Result:
				result, first := told.Result, 4*window
				if result.Window != window || result.FirstSample != first || result.EndSample != first+8 {
					return fmt.Errorf("window %d came as %v", window, result)
				}
				if err := same(result.Outputs[0].Data, pack(doubled[first:first+8])); err != nil {
					return err
				}
				window++
			case *stream.Event_Closed:
				if window != 24 || told.Closed.Answered != 24 || told.Closed.Samples != 100 {
					return fmt.Errorf("after %d windows: %v", window, told.Closed)
				}
				return call.CloseSend()
			case *stream.Event_Gap, *stream.Event_Error:
				return fmt.Errorf("got %v", event)
			}
		}
	}
}

func run(name string, c clients) (problem string) {
	ctx, stop := context.WithTimeout(context.Background(), longest)
	defer stop()
	found, ok := cases[name]
	if !ok {
		return "this client has no such case"
	}
	if err := found(ctx, c); err != nil {
		return err.Error()
	}
	return ""
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--list" {
		fmt.Println(strings.Join(order, "\n"))
		return
	}
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: client ADDRESS CUT_ADDRESS [CASE...] | --list")
		os.Exit(2)
	}
	sizes := grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(most), grpc.MaxCallSendMsgSize(most))
	channel, err := grpc.Dial(os.Args[1], grpc.WithInsecure(), sizes)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer channel.Close()
	c := clients{inference.NewGRPCInferenceServiceClient(channel), stream.NewSensorStreamClient(channel)}
	names := os.Args[3:]
	if len(names) == 0 {
		names = order
	}
	for _, name := range names {
		line, _ := json.Marshal(map[string]string{"case": name, "problem": run(name, c)})
		fmt.Println(string(line))
	}
}

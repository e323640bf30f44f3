import com.google.protobuf.ByteString;
import headrace.stream.v1.SensorStreamGrpc;
import headrace.stream.v1.Stream;
import inference.GRPCInferenceServiceGrpc;
import inference.GrpcService.ModelInferRequest;
import inference.GrpcService.ModelInferRequest.InferInputTensor;
import inference.GrpcService.ModelInferResponse;
import inference.GrpcService.ModelStreamInferResponse;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.NettyChannelBuilder;
import io.grpc.stub.StreamObserver;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.Executors;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

/**
 * The cases of clients/interop.md that are marked "wire", with nothing but generated stubs.
 *
 * <pre>client ADDRESS CUT_ADDRESS [CASE...]
 * client --list</pre>
 */
final class Client {
  private static final int LONGEST_SECONDS = 60;
  private static final long ENDLESS = 50_000_000;
  private static final int MOST_BYTES = 64 << 20;

  private interface Case {
    void run() throws Exception;
  }

  private final ManagedChannel channel;
  private final Map<String, Case> cases = new LinkedHashMap<>();

  private Client(String address) {
    channel =
        NettyChannelBuilder.forTarget(address).usePlaintext().maxInboundMessageSize(MOST_BYTES).build();
    cases.put("datatype_INT64", this::int64);
    cases.put("datatype_FP32", this::fp32);
    cases.put("datatype_BYTES", this::bytes);
    cases.put("big_message", this::bigMessage);
    cases.put("error_unknown_model", this::errorUnknownModel);
    cases.put("error_wrong_datatype", this::errorWrongDatatype);
    cases.put("deadline", this::deadline);
    cases.put("cancel", this::cancel);
    cases.put("stream_requests", this::streamRequests);
    cases.put("sensor_windows", this::sensorWindows);
  }

  public static void main(String[] arguments) throws InterruptedException {
    List<String> given = Arrays.asList(arguments);
    if (given.equals(List.of("--list"))) {
      new Client("127.0.0.1:1").cases.keySet().forEach(System.out::println);
      return;
    }
    if (given.size() < 2) {
      System.err.println("usage: client ADDRESS CUT_ADDRESS [CASE...] | --list");
      System.exit(2);
    }
    Client client = new Client(given.get(0));
    Iterable<String> names = given.size() > 2 ? given.subList(2, given.size()) : client.cases.keySet();
    for (String name : names) {
      System.out.printf("{\"case\": \"%s\", \"problem\": \"%s\"}%n", name, escaped(client.problem(name)));
    }
    client.channel.shutdownNow().awaitTermination(LONGEST_SECONDS, TimeUnit.SECONDS);
  }

  /** What went wrong; empty where it went well. */
  private String problem(String name) {
    Case found = cases.get(name);
    if (found == null) {
      return "this client has no such case";
    }
    try {
      found.run();
      return "";
    } catch (Exception | AssertionError error) {
      return error.toString();
    }
  }

  private static String escaped(String text) {
    return text.replace("\\", "\\\\").replace("\"", "'").replaceAll("\\p{Cntrl}", " ");
  }

  private GRPCInferenceServiceGrpc.GRPCInferenceServiceBlockingStub stub() {
    return GRPCInferenceServiceGrpc.newBlockingStub(channel)
        .withDeadlineAfter(LONGEST_SECONDS, TimeUnit.SECONDS);
  }

  // Tensors.

  private static ByteBuffer buffer(int size) {
    return ByteBuffer.allocate(size).order(ByteOrder.LITTLE_ENDIAN);
  }

  private static ByteString floats(float... values) {
    ByteBuffer packed = buffer(4 * values.length);
    packed.asFloatBuffer().put(values);
    return ByteString.copyFrom(packed);
  }

  private static ByteString longs(long... values) {
    ByteBuffer packed = buffer(8 * values.length);
    packed.asLongBuffer().put(values);
    return ByteString.copyFrom(packed);
  }

  private static InferInputTensor input(String name, String datatype, long... shape) {
    InferInputTensor.Builder made = InferInputTensor.newBuilder().setName(name).setDatatype(datatype);
    Arrays.stream(shape).forEach(made::addShape);
    return made.build();
  }

  private static ModelInferRequest request(String model, InferInputTensor input, ByteString raw) {
    return ModelInferRequest.newBuilder()
        .setModelName(model)
        .addInputs(input)
        .addRawInputContents(raw)
        .build();
  }

  private static ModelInferRequest pair(String model, float value) {
    return request(model, input("x", "FP32", 1, 2), floats(value, value));
  }

  private static void same(Object got, Object expected) {
    if (!got.equals(expected)) {
      throw new AssertionError("expected " + expected + ", got " + got);
    }
  }

  /** A tensor must come back bit for bit. */
  private void identity(InferInputTensor input, ByteString raw) {
    ModelInferResponse answer = stub().modelInfer(request("identity_" + input.getDatatype(), input, raw));
    same(answer.getOutputs(0).getDatatype(), input.getDatatype());
    same(answer.getOutputs(0).getShapeList(), input.getShapeList());
    same(answer.getRawOutputContents(0), raw);
  }

  private void int64() {
    identity(input("x", "INT64", 2, 2), longs(0, -(1L << 40), Long.MIN_VALUE, Long.MAX_VALUE));
  }

  private void fp32() {
    identity(
        input("x", "FP32", 2, 2), floats(-1.5f, Float.MIN_VALUE, Float.NaN, Float.POSITIVE_INFINITY));
  }

  private void bytes() {
    ByteString raw = ByteString.EMPTY;
    for (String text : List.of("", "zw\u00f6lf", "\0a", "one")) {
      byte[] encoded = text.getBytes(StandardCharsets.UTF_8);
      ByteBuffer length = buffer(4).putInt(0, encoded.length);
      raw = raw.concat(ByteString.copyFrom(length)).concat(ByteString.copyFrom(encoded));
    }
    identity(input("x", "BYTES", 2, 2), raw);
  }

  private void bigMessage() {
    float[] values = new float[4 << 20];
    for (int i = 0; i < values.length; i++) {
      values[i] = i;
    }
    identity(input("x", "FP32", 4, 1 << 20), floats(values));
  }

  // Errors.

  /** A call must fail so, with these words in its message. */
  private static void refused(Case call, Status.Code code, String reason, String... words)
      throws Exception {
    try {
      call.run();
    } catch (StatusRuntimeException error) {
      same(error.getStatus().getCode(), code);
      for (String word : words) {
        if (!error.getMessage().contains(word)) {
          throw new AssertionError(word + " is not in: " + error.getMessage());
        }
      }
      // The details are google.rpc.Status, for which Debian has no classes: the reason is in them.
      Metadata.Key<byte[]> key =
          Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);
      byte[] details = error.getTrailers() == null ? null : error.getTrailers().get(key);
      if (!reason.isEmpty()
          && !new String(details == null ? new byte[0] : details, StandardCharsets.ISO_8859_1)
              .contains(reason)) {
        throw new AssertionError("no reason " + reason);
      }
      return;
    }
    throw new AssertionError("this was answered");
  }

  private void errorUnknownModel() throws Exception {
    refused(
        () -> stub().modelInfer(pair("nothing", 1)),
        Status.Code.NOT_FOUND,
        "MODEL_NOT_FOUND",
        "'nothing'");
  }

  private void errorWrongDatatype() throws Exception {
    ModelInferRequest wrong = request("double", input("x", "FP64", 1, 2), longs(0, 0));
    refused(
        () -> stub().modelInfer(wrong),
        Status.Code.INVALID_ARGUMENT,
        "INVALID_INPUT",
        "'x'",
        "FP32",
        "FP64");
  }

  // Time.

  /** One row, whose answer is y = [[3]]. */
  private static ModelInferRequest lab(String model, long steps) {
    return request(model, input("x", "FP32", 1, 1), floats(1)).toBuilder()
        .addInputs(input("steps", "INT64", 1))
        .addRawInputContents(longs(steps))
        .addInputs(input("index", "INT64", 1))
        .addRawInputContents(longs(0))
        .build();
  }

  private void answers(String model) {
    same(stub().modelInfer(lab(model, 0)).getRawOutputContents(0), floats(3));
  }

  private void deadline() throws Exception {
    refused(
        () ->
            stub()
                .withDeadlineAfter(300, TimeUnit.MILLISECONDS)
                .modelInfer(lab("lab_deadline", ENDLESS)),
        Status.Code.DEADLINE_EXCEEDED,
        "");
    answers("lab_deadline");
  }

  private void cancel() throws Exception {
    ScheduledExecutorService later = Executors.newSingleThreadScheduledExecutor();
    Context.CancellableContext leaving = Context.current().withCancellation();
    later.schedule(() -> leaving.cancel(null), 300, TimeUnit.MILLISECONDS);
    refused(
        () -> leaving.run(() -> stub().modelInfer(lab("lab_cancel", ENDLESS))),
        Status.Code.CANCELLED,
        "");
    later.shutdown();
    answers("lab_cancel");
  }

  // Streams.

  /** What comes on a call, then its end: an exception, or this object itself. */
  private static final class Inbox<T> implements StreamObserver<T> {
    private final BlockingQueue<Object> came = new LinkedBlockingQueue<>();

    @Override
    public void onNext(T message) {
      came.add(message);
    }

    @Override
    public void onError(Throwable error) {
      came.add(error);
    }

    @Override
    public void onCompleted() {
      came.add(this);
    }

    /** The next message; null at the end. */
    @SuppressWarnings("unchecked")
    T next() throws Exception {
      Object next = came.poll(LONGEST_SECONDS, TimeUnit.SECONDS);
      if (next == null || next instanceof Throwable) {
        throw new Exception("instead of a message: " + next);
      }
      return next == this ? null : (T) next;
    }
  }

  private void streamRequests() throws Exception {
    Inbox<ModelStreamInferResponse> inbox = new Inbox<>();
    StreamObserver<ModelInferRequest> call =
        GRPCInferenceServiceGrpc.newStub(channel).modelStreamInfer(inbox);
    for (int number = 0; number < 50; number++) {
      call.onNext(pair("double", number).toBuilder().setId("" + number).build());
    }
    call.onCompleted();
    Set<String> seen = new HashSet<>();
    for (ModelStreamInferResponse said = inbox.next(); said != null; said = inbox.next()) {
      same(said.getErrorMessage(), "");
      ModelInferResponse answer = said.getInferResponse();
      float doubled = 2 * Integer.parseInt(answer.getId());
      same(answer.getRawOutputContents(0), floats(doubled, doubled));
      seen.add(answer.getId());
    }
    same(seen.size(), 50);
  }

  private void sensorWindows() throws Exception {
    Inbox<Stream.StreamResponse> inbox = new Inbox<>();
    StreamObserver<Stream.StreamRequest> call = SensorStreamGrpc.newStub(channel).stream(inbox);
    float[] signal = new float[100];
    float[] doubled = new float[100];
    for (int i = 0; i < signal.length; i++) {
      signal[i] = i;
      doubled[i] = 2 * i;
    }
    Stream.Open.Builder open =
        Stream.Open.newBuilder()
            .setModel("double")
            .setWindow(8)
            .setHop(4)
            .setSampleRateHz(100)
            .addSignals(Stream.Signal.getDefaultInstance());
    Stream.StreamRequest.Builder message = Stream.StreamRequest.newBuilder();
    message.addCommandsBuilder().setHandle(1).setOpen(open);
    for (int at = 0; at < signal.length; at += 7) {
      float[] piece = Arrays.copyOfRange(signal, at, Math.min(at + 7, signal.length));
      Stream.Chunk.Builder chunk = Stream.Chunk.newBuilder().setSequence(at).addData(floats(piece));
      message.addCommandsBuilder().setHandle(1).setChunk(chunk);
    }
    message.addCommandsBuilder().setHandle(1).setClose(Stream.Close.getDefaultInstance());
    call.onNext(message.build());
    int window = 0;
    for (Stream.StreamResponse said = inbox.next(); said != null; said = inbox.next()) {
      for (Stream.Event event : said.getEventsList()) {
        if (event.hasResult()) {
          Stream.Result result = event.getResult();
          int first = 4 * window;
          same(List.of(result.getWindow(), result.getFirstSample(), result.getEndSample()),
              List.of((long) window, (long) first, first + 8L));
          same(result.getOutputs(0).getData(), floats(Arrays.copyOfRange(doubled, first, first + 8)));
          window++;
        } else if (event.hasClosed()) {
          same(window, 24);
          same(event.getClosed().getAnswered(), 24L);
          same(event.getClosed().getSamples(), 100L);
          call.onCompleted();
        } else if (event.hasGap() || event.hasError()) {
          throw new AssertionError("got " + event);
        }
      }
    }
  }
}

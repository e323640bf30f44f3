// A Triton backend that runs ONNX models with ONNX Runtime on the CPU.
//
// It does for a batch what NVIDIA's onnxruntime backend does, which comes in no package: the rows
// of all requests in one buffer, one run, and to each response a copy of its rows.

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "model.h"
#include "onnxruntime.h"
#include "requests.h"
#include "triton.h"

namespace {

struct ElementType {
  ort::ElementType onnx;
  triton::DataType triton;
  std::size_t bytes;
};

constexpr ElementType kElementTypes[] = {
    {ort::kBool, triton::kBool, 1},     {ort::kUint8, triton::kUint8, 1},
    {ort::kUint16, triton::kUint16, 2}, {ort::kUint32, triton::kUint32, 4},
    {ort::kUint64, triton::kUint64, 8}, {ort::kInt8, triton::kInt8, 1},
    {ort::kInt16, triton::kInt16, 2},   {ort::kInt32, triton::kInt32, 4},
    {ort::kInt64, triton::kInt64, 8},   {ort::kFloat16, triton::kFp16, 2},
    {ort::kFloat, triton::kFp32, 4},    {ort::kDouble, triton::kFp64, 8},
};

template <typename Type>
const ElementType& element_type(Type ElementType::*member, Type wanted, const std::string& tensor) {
  for (const ElementType& type : kElementTypes) {
    if (type.*member == wanted) return type;
  }
  throw Failure(triton::kUnsupported, "'" + tensor + "' holds neither numbers nor booleans");
}

// An input or output of a session.
struct Tensor {
  std::string name;
  std::size_t rank;
};

template <typename GetName, typename GetType>
std::vector<Tensor> tensors(const OrtSession* session, std::size_t count, GetName get_name,
                            GetType get_type) {
  OrtAllocator* const allocator = ort::get_allocator_with_default_options();
  std::vector<Tensor> found;
  for (std::size_t i = 0; i < count; ++i) {
    char* const allocated = get_name(session, i, allocator);
    const std::string name = allocated;
    ort::allocator_free(allocator, allocated);
    const ort::TypeInfo type = get_type(session, i);
    const auto* const info = ort::cast_type_info_to_tensor_info(type.get());
    if (!info) throw Failure(triton::kUnsupported, "'" + name + "' is no tensor");
    element_type(&ElementType::onnx, ort::get_tensor_element_type(info), name);
    found.push_back({name, ort::get_dimensions_count(info)});
  }
  return found;
}

std::vector<const char*> names(const std::vector<Tensor>& tensors) {
  std::vector<const char*> found;
  for (const Tensor& tensor : tensors) found.push_back(tensor.name.c_str());
  return found;
}

ort::Session open_session(const OrtEnv* env, const Model& model) {
  const ort::SessionOptions options = ort::create_session_options();
  ort::set_execution_mode(options.get(), ort::kSequential);
  ort::set_graph_optimization_level(options.get(), ort::kAllOptimizations);
  ort::set_intra_op_num_threads(options.get(), model.threads);
  return ort::create_session(env, model.path.c_str(), options.get());
}

// Memory that is kept for the next batch, and never cleared.
class Buffer {
 public:
  char* reserve(std::size_t bytes) {
    if (bytes > capacity_) {
      data_.reset(new char[bytes]);
      capacity_ = bytes;
    }
    return data_.get();
  }

 private:
  std::unique_ptr<char[]> data_;
  std::size_t capacity_ = 0;
};

std::uint64_t now() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
}

// One copy of the model, which runs one batch at a time.
class Instance {
 public:
  Instance(TRITONBACKEND_ModelInstance* instance, const Model& model)
      : instance_(instance), batches_(model.batches), session_(open_session(env_.get(), model)) {
    const OrtSession* const session = session_.get();
    inputs_ = tensors(session, ort::session_get_input_count(session), ort::session_get_input_name,
                      ort::session_get_input_type_info);
    outputs_ = tensors(session, ort::session_get_output_count(session),
                       ort::session_get_output_name, ort::session_get_output_type_info);
    input_names_ = names(inputs_);
    output_names_ = names(outputs_);
    buffers_.resize(inputs_.size());
  }

  void execute(TRITONBACKEND_Request** requests, std::uint32_t count) {
    const std::uint64_t start = now();
    std::uint64_t compute_start = start, compute_end = start;
    std::vector<Call> calls = open(requests, count);
    const std::int64_t rows = std::accumulate(
        calls.begin(), calls.end(), std::int64_t{0},
        [](std::int64_t sum, const Call& call) { return sum + call.rows; });
    const Error error(attempt([&] {
      const auto inputs = gather(calls, rows);
      compute_start = now();
      const auto outputs = run(inputs);
      compute_end = now();
      for (std::size_t i = 0; i < outputs.size(); ++i) split(outputs[i], outputs_[i], calls, rows);
    }));
    const std::uint64_t end = now();
    for (Call& call : calls) call.answer(error.get());
    for (const Call& call : calls) {
      ignore(TRITONBACKEND_ModelInstanceReportStatistics(
          instance_, call.request, !call.failed(), start, compute_start, compute_end, end));
      ignore(TRITONBACKEND_RequestRelease(call.request, triton::kReleaseAll));
    }
    if (error) return;
    ignore(TRITONBACKEND_ModelInstanceReportBatchStatistics(instance_, rows, start, compute_start,
                                                            compute_end, end));
  }

 private:
  using Values = std::vector<ort::Value>;

  std::vector<Call> open(TRITONBACKEND_Request** requests, std::uint32_t count) const {
    std::vector<Call> calls;
    calls.reserve(count);
    for (std::uint32_t i = 0; i < count; ++i) {
      const bool counted = batches_ && !inputs_.empty();
      const auto rows = counted ? Part(requests[i], inputs_[0].name).shape[0] : 1;
      calls.emplace_back(requests[i], rows);
    }
    return calls;
  }

  Values gather(const std::vector<Call>& calls, std::int64_t rows) {
    Values found;
    for (std::size_t i = 0; i < inputs_.size(); ++i) {
      std::vector<Part> parts;
      parts.reserve(calls.size());
      for (const Call& call : calls) parts.emplace_back(call.request, inputs_[i].name);
      found.push_back(join(parts, inputs_[i], buffers_[i], rows));
    }
    return found;
  }

  // The parts in one tensor. Triton has batched only parts that agree in all but their rows.
  ort::Value join(const std::vector<Part>& parts, const Tensor& tensor, Buffer& buffer,
                  std::int64_t rows) const {
    const Part& first = parts.front();
    std::uint64_t bytes = 0;
    for (const Part& part : parts) bytes += part.bytes;
    char* data;
    if (parts.size() == 1 && first.buffers == 1) {
      data = const_cast<char*>(first.buffer(0).data());  // a run does not write to its inputs
    } else {
      data = buffer.reserve(bytes);
      char* end = data;
      for (const Part& part : parts) end = part.copy(end);
    }
    // Triton knows no scalars: to it they have one dimension, of size 1.
    std::vector<std::int64_t> shape(first.shape, first.shape + (tensor.rank ? first.rank : 0));
    if (batches_) shape.at(0) = rows;
    const ElementType& type = element_type(&ElementType::triton, first.type, tensor.name);
    return ort::create_tensor_with_data(memory_.get(), data, bytes, shape.data(), shape.size(),
                                        type.onnx);
  }

  Values run(const Values& inputs) const {
    std::vector<const OrtValue*> given;
    for (const ort::Value& input : inputs) given.push_back(input.get());
    std::vector<OrtValue*> found(outputs_.size());
    ort::run(session_.get(), nullptr, input_names_.data(), given.data(), given.size(),
             output_names_.data(), found.size(), found.data());
    return Values(found.begin(), found.end());
  }

  // Each caller's rows of an output, to its response.
  void split(const ort::Value& output, const Tensor& tensor, std::vector<Call>& calls,
             std::int64_t rows) const {
    const ort::ShapeInfo info = ort::get_tensor_type_and_shape(output.get());
    const ElementType& type =
        element_type(&ElementType::onnx, ort::get_tensor_element_type(info.get()), tensor.name);
    std::vector<std::int64_t> shape(ort::get_dimensions_count(info.get()));
    ort::get_dimensions(info.get(), shape.data(), shape.size());
    if (shape.empty()) shape.push_back(1);
    if (batches_ && shape[0] != rows) {
      throw Failure(triton::kInternal, "output '" + tensor.name + "' has " +
                                           std::to_string(shape[0]) + " rows for a batch of " +
                                           std::to_string(rows));
    }
    const auto* source = static_cast<const char*>(ort::get_tensor_mutable_data(output.get()));
    for (Call& call : calls) {
      if (batches_) shape[0] = call.rows;
      const std::size_t bytes = std::accumulate(shape.begin(), shape.end(), type.bytes,
                                                std::multiplies<std::size_t>());
      call.put(tensor.name, type.triton, shape, source, bytes);
      source += bytes;
    }
  }

  TRITONBACKEND_ModelInstance* instance_;
  bool batches_;
  ort::Env env_ = ort::create_env(ort::kWarning, "triton");
  ort::MemoryInfo memory_ = ort::create_cpu_memory_info(ort::kArenaAllocator, ort::kDefaultMemory);
  ort::Session session_;
  std::vector<Tensor> inputs_;
  std::vector<Tensor> outputs_;
  std::vector<const char*> input_names_;
  std::vector<const char*> output_names_;
  std::vector<Buffer> buffers_;  // of the inputs
};

Instance* state(TRITONBACKEND_ModelInstance* instance) {
  void* found;
  check(TRITONBACKEND_ModelInstanceState(instance, &found));
  return static_cast<Instance*>(found);
}

}  // namespace

// What Triton looks for in a backend.
#pragma GCC visibility push(default)
extern "C" {

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance* instance) {
  return attempt([&] {
    TRITONBACKEND_Model* model;
    check(TRITONBACKEND_ModelInstanceModel(instance, &model));
    auto made = std::make_unique<Instance>(instance, read_model(model));
    check(TRITONBACKEND_ModelInstanceSetState(instance, made.get()));
    made.release();
  });
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance* instance) {
  return attempt([&] { delete state(instance); });
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests, std::uint32_t count) {
  return attempt([&] { state(instance)->execute(requests, count); });
}

}  // extern "C"
#pragma GCC visibility pop

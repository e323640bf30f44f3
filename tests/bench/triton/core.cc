// The part of Triton's core that the backend asks, so that it can be tested where no Triton is.
//
// The functions with names of their own are for the test: they make a model, an instance of it and
// requests, which the test hands to the backend, and tell what has become of a request.

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "triton.h"

struct TRITONSERVER_Error {
  triton::ErrorCode code;
  std::string message;
};
struct TRITONSERVER_Message {
  std::string text;
};
struct TRITONBACKEND_Model {
  std::string folder;
  std::string config;
};
struct TRITONBACKEND_ModelInstance {
  TRITONBACKEND_Model* model;
  void* state = nullptr;
  std::int64_t succeeded = 0;
  std::int64_t rows = 0;  // of all batches
};
struct TRITONBACKEND_Input {
  std::string name;
  triton::DataType type;
  std::vector<std::int64_t> shape;
  std::vector<std::string> buffers;
};
struct TRITONBACKEND_Output {
  std::string name;
  triton::DataType type;
  std::vector<std::int64_t> shape;
  std::string data;
};
struct TRITONBACKEND_Response {
  std::deque<TRITONBACKEND_Output> outputs;
  std::string error;
  bool sent = false;
};
struct TRITONBACKEND_Request {
  std::deque<TRITONBACKEND_Input> inputs;
  std::vector<std::string> wanted;
  TRITONBACKEND_Response response;
  bool released = false;
};

namespace {

std::int64_t living_errors = 0;

template <typename T>
void set(T* place, const T& value) {
  if (place) *place = value;
}

}  // namespace

extern "C" {

TRITONSERVER_Error* TRITONSERVER_ErrorNew(triton::ErrorCode code, const char* message) {
  ++living_errors;
  return new TRITONSERVER_Error{code, message};
}

triton::ErrorCode TRITONSERVER_ErrorCode(TRITONSERVER_Error* error) { return error->code; }

const char* TRITONSERVER_ErrorMessage(TRITONSERVER_Error* error) { return error->message.c_str(); }

void TRITONSERVER_ErrorDelete(TRITONSERVER_Error* error) {
  --living_errors;
  delete error;
}

TRITONSERVER_Error* TRITONSERVER_MessageSerializeToJson(
    TRITONSERVER_Message* message, const char** text, std::size_t* length) {
  *text = message->text.data();
  *length = message->text.size();
  return nullptr;
}

TRITONSERVER_Error* TRITONSERVER_MessageDelete(TRITONSERVER_Message* message) {
  delete message;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ModelConfig(
    TRITONBACKEND_Model* model, std::uint32_t, TRITONSERVER_Message** config) {
  *config = new TRITONSERVER_Message{model->config};
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ModelRepository(
    TRITONBACKEND_Model* model, int*, const char** folder) {
  *folder = model->folder.c_str();
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ModelVersion(TRITONBACKEND_Model*, std::uint64_t* version) {
  *version = 1;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceModel(
    TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Model** model) {
  *model = instance->model;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceState(
    TRITONBACKEND_ModelInstance* instance, void** state) {
  *state = instance->state;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceSetState(
    TRITONBACKEND_ModelInstance* instance, void* state) {
  instance->state = state;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportStatistics(
    TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request*, bool success, std::uint64_t,
    std::uint64_t, std::uint64_t, std::uint64_t) {
  instance->succeeded += success;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportBatchStatistics(
    TRITONBACKEND_ModelInstance* instance, std::uint64_t rows, std::uint64_t, std::uint64_t,
    std::uint64_t, std::uint64_t) {
  instance->rows += rows;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_RequestInput(
    TRITONBACKEND_Request* request, const char* name, TRITONBACKEND_Input** found) {
  for (TRITONBACKEND_Input& input : request->inputs) {
    if (input.name != name) continue;
    *found = &input;
    return nullptr;
  }
  return TRITONSERVER_ErrorNew(triton::kInternal, "an input is missing");
}

TRITONSERVER_Error* TRITONBACKEND_RequestOutputCount(
    TRITONBACKEND_Request* request, std::uint32_t* count) {
  *count = request->wanted.size();
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_RequestOutputName(
    TRITONBACKEND_Request* request, std::uint32_t index, const char** name) {
  *name = request->wanted.at(index).c_str();
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_RequestRelease(TRITONBACKEND_Request* request, std::uint32_t) {
  request->released = true;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_InputProperties(
    TRITONBACKEND_Input* input, const char** name, triton::DataType* type,
    const std::int64_t** shape, std::uint32_t* rank, std::uint64_t* bytes, std::uint32_t* buffers) {
  std::uint64_t sum = 0;
  for (const std::string& buffer : input->buffers) sum += buffer.size();
  set(name, input->name.c_str());
  set(type, input->type);
  set<const std::int64_t*>(shape, input->shape.data());
  set(rank, static_cast<std::uint32_t>(input->shape.size()));
  set(bytes, sum);
  set(buffers, static_cast<std::uint32_t>(input->buffers.size()));
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_InputBuffer(
    TRITONBACKEND_Input* input, std::uint32_t index, const void** data, std::uint64_t* bytes,
    triton::MemoryType* memory, std::int64_t*) {
  *data = input->buffers.at(index).data();
  *bytes = input->buffers.at(index).size();
  *memory = triton::kCpu;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ResponseNew(
    TRITONBACKEND_Response** response, TRITONBACKEND_Request* request) {
  *response = &request->response;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ResponseDelete(TRITONBACKEND_Response*) { return nullptr; }

TRITONSERVER_Error* TRITONBACKEND_ResponseOutput(
    TRITONBACKEND_Response* response, TRITONBACKEND_Output** output, const char* name,
    triton::DataType type, const std::int64_t* shape, std::uint32_t rank) {
  response->outputs.push_back({name, type, {shape, shape + rank}, ""});
  *output = &response->outputs.back();
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_OutputBuffer(
    TRITONBACKEND_Output* output, void** data, std::uint64_t bytes, triton::MemoryType* memory,
    std::int64_t*) {
  output->data.resize(bytes);
  *data = output->data.data();
  *memory = triton::kCpu;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ResponseSend(
    TRITONBACKEND_Response* response, std::uint32_t, TRITONSERVER_Error* error) {
  if (response->sent) return TRITONSERVER_ErrorNew(triton::kInternal, "sent twice");
  response->sent = true;
  if (error) response->error = error->message;
  return nullptr;
}

// For the test. What is made lives as long as the process.

TRITONBACKEND_ModelInstance* make_instance(const char* folder, const char* config) {
  return new TRITONBACKEND_ModelInstance{new TRITONBACKEND_Model{folder, config}};
}

TRITONBACKEND_Request* make_request() { return new TRITONBACKEND_Request; }

void want(TRITONBACKEND_Request* request, const char* output) {
  request->wanted.push_back(output);
}

// In two buffers, where `cut` is a place within the data.
void add_input(TRITONBACKEND_Request* request, const char* name, int type,
               const std::int64_t* shape, std::size_t rank, const char* data, std::size_t bytes,
               std::size_t cut) {
  std::vector<std::string> buffers{{data, data + cut}};
  if (cut < bytes) buffers.emplace_back(data + cut, data + bytes);
  request->inputs.push_back(
      {name, static_cast<triton::DataType>(type), {shape, shape + rank}, buffers});
}

std::int64_t living() { return living_errors; }
std::int64_t succeeded(TRITONBACKEND_ModelInstance* instance) { return instance->succeeded; }
std::int64_t batched_rows(TRITONBACKEND_ModelInstance* instance) { return instance->rows; }
bool done(TRITONBACKEND_Request* request) { return request->response.sent && request->released; }
const char* error_of(TRITONBACKEND_Request* request) { return request->response.error.c_str(); }
std::size_t output_count(TRITONBACKEND_Request* request) {
  return request->response.outputs.size();
}

// An output's name; the rest is put where the pointers say.
const char* output_of(TRITONBACKEND_Request* request, std::size_t index, int* type,
                      const std::int64_t** shape, std::size_t* rank, const char** data,
                      std::size_t* bytes) {
  const TRITONBACKEND_Output& output = request->response.outputs.at(index);
  *type = output.type;
  *shape = output.shape.data();
  *rank = output.shape.size();
  *data = output.data.data();
  *bytes = output.data.size();
  return output.name.c_str();
}

}  // extern "C"

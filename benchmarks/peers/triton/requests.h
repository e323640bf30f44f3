// Requests and responses of Triton's, with its errors as exceptions.

#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "triton.h"

template <typename T, auto release>
struct Release {
  void operator()(T* owned) const { release(owned); }
};
using Error = std::unique_ptr<
    TRITONSERVER_Error, Release<TRITONSERVER_Error, TRITONSERVER_ErrorDelete>>;

// What nobody can be told any more.
inline void ignore(TRITONSERVER_Error* given) { const Error error(given); }

// An error on its way to whoever is told of it.
struct Failure : std::runtime_error {
  Failure(triton::ErrorCode code, const std::string& message)
      : std::runtime_error(message), code(code) {}
  triton::ErrorCode code;
};

inline void check(TRITONSERVER_Error* given) {
  if (!given) return;
  const Error error(given);
  throw Failure(TRITONSERVER_ErrorCode(given), TRITONSERVER_ErrorMessage(given));
}

// Exceptions end here: Triton's interface has none.
template <typename Action>
TRITONSERVER_Error* attempt(Action action) {
  try {
    action();
    return nullptr;
  } catch (const Failure& failure) {
    return TRITONSERVER_ErrorNew(failure.code, failure.what());
  } catch (const std::exception& failure) {
    return TRITONSERVER_ErrorNew(triton::kInternal, failure.what());
  }
}

// A request's part of a batch's input. It is valid until the request is released.
struct Part {
  TRITONBACKEND_Input* input;
  triton::DataType type;
  const std::int64_t* shape;
  std::uint32_t rank;
  std::uint64_t bytes;
  std::uint32_t buffers;

  Part(TRITONBACKEND_Request* request, const std::string& name) {
    check(TRITONBACKEND_RequestInput(request, name.c_str(), &input));
    check(TRITONBACKEND_InputProperties(input, nullptr, &type, &shape, &rank, &bytes, &buffers));
  }

  std::string_view buffer(std::uint32_t index) const {
    const void* data;
    std::uint64_t length;
    triton::MemoryType memory = triton::kCpu;
    std::int64_t device = 0;
    check(TRITONBACKEND_InputBuffer(input, index, &data, &length, &memory, &device));
    if (memory == triton::kGpu) throw Failure(triton::kUnsupported, "an input is on a GPU");
    return {static_cast<const char*>(data), length};
  }

  // Gives the end of what was written.
  char* copy(char* target) const {
    for (std::uint32_t i = 0; i < buffers; ++i) {
      const std::string_view source = buffer(i);
      std::memcpy(target, source.data(), source.size());
      target += source.size();
    }
    return target;
  }
};

// A request and its response, which is null once it is sent.
class Call {
 public:
  Call(TRITONBACKEND_Request* request, std::int64_t rows) : request(request), rows(rows) {
    TRITONBACKEND_Response* response;
    check(TRITONBACKEND_ResponseNew(&response, request));
    response_.reset(response);
  }

  TRITONBACKEND_Request* request;
  std::int64_t rows;

  bool failed() const { return failed_; }

  // Copies an output into the response, where the request asked for it. An error is sent at once.
  void put(const std::string& name, triton::DataType type, const std::vector<std::int64_t>& shape,
           const char* source, std::size_t bytes) {
    if (!response_) return;
    const Error error(attempt([&] {
      if (!wants(name)) return;
      TRITONBACKEND_Output* output;
      check(TRITONBACKEND_ResponseOutput(response_.get(), &output, name.c_str(), type,
                                         shape.data(), shape.size()));
      void* target;
      triton::MemoryType memory = triton::kCpu;
      std::int64_t device = 0;
      check(TRITONBACKEND_OutputBuffer(output, &target, bytes, &memory, &device));
      if (memory == triton::kGpu) throw Failure(triton::kUnsupported, "an output is on a GPU");
      if (bytes > 0) std::memcpy(target, source, bytes);
    }));
    if (error) answer(error.get());
  }

  // Sends the response, or the error where there is one, if that has not been done.
  void answer(TRITONSERVER_Error* error) {
    if (!response_) return;
    failed_ = error != nullptr;
    ignore(TRITONBACKEND_ResponseSend(response_.release(), triton::kFinalResponse, error));
  }

 private:
  bool wants(const std::string& output) const {
    std::uint32_t count;
    check(TRITONBACKEND_RequestOutputCount(request, &count));
    for (std::uint32_t i = 0; i < count; ++i) {
      const char* name;
      check(TRITONBACKEND_RequestOutputName(request, i, &name));
      if (output == name) return true;
    }
    return false;
  }

  static void discard(TRITONBACKEND_Response* response) {
    ignore(TRITONBACKEND_ResponseDelete(response));
  }

  std::unique_ptr<TRITONBACKEND_Response, Release<TRITONBACKEND_Response, discard>> response_;
  bool failed_ = false;
};

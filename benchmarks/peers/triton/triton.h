// What the backend uses of Triton's C API, declared here because no package brings its headers.
//
// The functions are found in the process of the server that loads the backend. Each gives null, or
// an error that the caller owns.

#pragma once

#include <cstddef>
#include <cstdint>

struct TRITONSERVER_Error;
struct TRITONSERVER_Message;
struct TRITONBACKEND_Model;
struct TRITONBACKEND_ModelInstance;
struct TRITONBACKEND_Request;
struct TRITONBACKEND_Response;
struct TRITONBACKEND_Input;
struct TRITONBACKEND_Output;

namespace triton {

enum ErrorCode : int { kInternal = 1, kUnsupported = 5 };
enum MemoryType : int { kCpu = 0, kCpuPinned = 1, kGpu = 2 };
enum DataType : int {
  kBool = 1,
  kUint8,
  kUint16,
  kUint32,
  kUint64,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kFp16,
  kFp32,
  kFp64,
};

constexpr std::uint32_t kConfigVersion = 1;
constexpr std::uint32_t kFinalResponse = 1;
constexpr std::uint32_t kReleaseAll = 1;

}  // namespace triton

extern "C" {

TRITONSERVER_Error* TRITONSERVER_ErrorNew(triton::ErrorCode, const char* message);
triton::ErrorCode TRITONSERVER_ErrorCode(TRITONSERVER_Error*);
const char* TRITONSERVER_ErrorMessage(TRITONSERVER_Error*);
void TRITONSERVER_ErrorDelete(TRITONSERVER_Error*);
TRITONSERVER_Error* TRITONSERVER_MessageSerializeToJson(
    TRITONSERVER_Message*, const char** text, std::size_t* length);
TRITONSERVER_Error* TRITONSERVER_MessageDelete(TRITONSERVER_Message*);

TRITONSERVER_Error* TRITONBACKEND_ModelConfig(
    TRITONBACKEND_Model*, std::uint32_t version, TRITONSERVER_Message** config);
TRITONSERVER_Error* TRITONBACKEND_ModelRepository(
    TRITONBACKEND_Model*, int* artifact_type, const char** folder);
TRITONSERVER_Error* TRITONBACKEND_ModelVersion(TRITONBACKEND_Model*, std::uint64_t* version);

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceModel(
    TRITONBACKEND_ModelInstance*, TRITONBACKEND_Model**);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceState(TRITONBACKEND_ModelInstance*, void** state);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceSetState(TRITONBACKEND_ModelInstance*, void* state);

// Times are nanoseconds of the steady clock. "compute" is the run; before it in "exec" come the
// inputs, after it the outputs.
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportStatistics(
    TRITONBACKEND_ModelInstance*, TRITONBACKEND_Request*, bool success, std::uint64_t exec_start,
    std::uint64_t compute_start, std::uint64_t compute_end, std::uint64_t exec_end);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportBatchStatistics(
    TRITONBACKEND_ModelInstance*, std::uint64_t rows, std::uint64_t exec_start,
    std::uint64_t compute_start, std::uint64_t compute_end, std::uint64_t exec_end);

TRITONSERVER_Error* TRITONBACKEND_RequestInput(
    TRITONBACKEND_Request*, const char* name, TRITONBACKEND_Input**);
// The outputs asked for, which are all where the caller named none.
TRITONSERVER_Error* TRITONBACKEND_RequestOutputCount(TRITONBACKEND_Request*, std::uint32_t* count);
TRITONSERVER_Error* TRITONBACKEND_RequestOutputName(
    TRITONBACKEND_Request*, std::uint32_t index, const char** name);
TRITONSERVER_Error* TRITONBACKEND_RequestRelease(TRITONBACKEND_Request*, std::uint32_t flags);

// Any of the places for answers may be null.
TRITONSERVER_Error* TRITONBACKEND_InputProperties(
    TRITONBACKEND_Input*, const char** name, triton::DataType*, const std::int64_t** shape,
    std::uint32_t* rank, std::uint64_t* bytes, std::uint32_t* buffers);
// `memory` and `device` go in as what is preferred and come out as what it is.
TRITONSERVER_Error* TRITONBACKEND_InputBuffer(
    TRITONBACKEND_Input*, std::uint32_t index, const void** data, std::uint64_t* bytes,
    triton::MemoryType* memory, std::int64_t* device);

TRITONSERVER_Error* TRITONBACKEND_ResponseNew(TRITONBACKEND_Response**, TRITONBACKEND_Request*);
TRITONSERVER_Error* TRITONBACKEND_ResponseDelete(TRITONBACKEND_Response*);
TRITONSERVER_Error* TRITONBACKEND_ResponseOutput(
    TRITONBACKEND_Response*, TRITONBACKEND_Output**, const char* name, triton::DataType,
    const std::int64_t* shape, std::uint32_t rank);
TRITONSERVER_Error* TRITONBACKEND_OutputBuffer(
    TRITONBACKEND_Output*, void** data, std::uint64_t bytes, triton::MemoryType* memory,
    std::int64_t* device);
// Takes the response, but not the error.
TRITONSERVER_Error* TRITONBACKEND_ResponseSend(
    TRITONBACKEND_Response*, std::uint32_t flags, TRITONSERVER_Error*);

}  // extern "C"

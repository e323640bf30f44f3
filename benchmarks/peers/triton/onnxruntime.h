// What the backend uses of ONNX Runtime's C API, declared here because no package brings its
// header.
//
// The API is a table of functions to which new ones are only ever added at the end, so each has a
// place for ever. All that are used here are of its first version.

#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

struct OrtEnv;
struct OrtStatus;
struct OrtMemoryInfo;
struct OrtSession;
struct OrtValue;
struct OrtRunOptions;
struct OrtTypeInfo;
struct OrtTensorTypeAndShapeInfo;
struct OrtSessionOptions;
struct OrtAllocator;

namespace ort {

enum ElementType : int {
  kFloat = 1,
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kInt32,
  kInt64,
  kString,
  kBool,
  kFloat16,
  kDouble,
  kUint32,
  kUint64,
};
enum Severity : int { kWarning = 2 };
enum ExecutionMode : int { kSequential = 0 };
enum Optimization : int { kAllOptimizations = 99 };
enum AllocatorType : int { kArenaAllocator = 1 };
enum DeviceMemory : int { kDefaultMemory = 0 };

using Function = void (*)();

// The table, of the library at ORT_LIBRARY. The library stays loaded until the process ends.
inline const Function* api() {
  static const Function* const table = [] {
    struct Base {
      const Function* (*get_api)(std::uint32_t version);
    };
    void* const library = dlopen(ORT_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    void* const entry = library ? dlsym(library, "OrtGetApiBase") : nullptr;
    if (!entry) throw std::runtime_error(dlerror());
    return reinterpret_cast<const Base* (*)()>(entry)()->get_api(1);
  }();
  return table;
}

// The function at a place of the table that gives a plain result.
template <std::size_t place, typename Result, typename... Parameters>
struct Plain {
  Result operator()(Parameters... arguments) const {
    return reinterpret_cast<Result (*)(Parameters...)>(api()[place])(arguments...);
  }
};

inline constexpr Plain<1, int, const OrtStatus*> get_error_code;
inline constexpr Plain<2, const char*, const OrtStatus*> get_error_message;

using ReleaseEnv = Plain<92, void, OrtEnv*>;
using ReleaseStatus = Plain<93, void, OrtStatus*>;
using ReleaseMemoryInfo = Plain<94, void, OrtMemoryInfo*>;
using ReleaseSession = Plain<95, void, OrtSession*>;
using ReleaseValue = Plain<96, void, OrtValue*>;
using ReleaseTypeInfo = Plain<98, void, OrtTypeInfo*>;
using ReleaseShapeInfo = Plain<99, void, OrtTensorTypeAndShapeInfo*>;
using ReleaseSessionOptions = Plain<100, void, OrtSessionOptions*>;

using Env = std::unique_ptr<OrtEnv, ReleaseEnv>;
using Status = std::unique_ptr<OrtStatus, ReleaseStatus>;
using MemoryInfo = std::unique_ptr<OrtMemoryInfo, ReleaseMemoryInfo>;
using Session = std::unique_ptr<OrtSession, ReleaseSession>;
using Value = std::unique_ptr<OrtValue, ReleaseValue>;
using TypeInfo = std::unique_ptr<OrtTypeInfo, ReleaseTypeInfo>;
using ShapeInfo = std::unique_ptr<OrtTensorTypeAndShapeInfo, ReleaseShapeInfo>;
using SessionOptions = std::unique_ptr<OrtSessionOptions, ReleaseSessionOptions>;

// The function at a place of the table that gives a status, thrown where it is an error.
template <std::size_t place, typename... Parameters>
struct Checked {
  void operator()(Parameters... arguments) const {
    const Status failed(Plain<place, OrtStatus*, Parameters...>()(arguments...));
    if (!failed) return;
    throw std::runtime_error("onnx runtime error " + std::to_string(get_error_code(failed.get())) +
                             ": " + get_error_message(failed.get()));
  }
};

// The same where the last parameter is the place for a result.
template <std::size_t place, typename Result, typename... Parameters>
struct Getter {
  Result operator()(Parameters... arguments) const {
    Result result{};
    Checked<place, Parameters..., Result*>()(arguments..., &result);
    return result;
  }
};

// The same where the result is the caller's to release.
template <std::size_t place, typename Owner, typename... Parameters>
struct Maker {
  Owner operator()(Parameters... arguments) const {
    return Owner(Getter<place, typename Owner::pointer, Parameters...>()(arguments...));
  }
};

inline constexpr Maker<3, Env, Severity, const char*> create_env;
inline constexpr Maker<7, Session, const OrtEnv*, const char*, const OrtSessionOptions*>
    create_session;
inline constexpr Checked<9, OrtSession*, const OrtRunOptions*, const char* const*,
                         const OrtValue* const*, std::size_t, const char* const*, std::size_t,
                         OrtValue**>
    run;
inline constexpr Maker<10, SessionOptions> create_session_options;
inline constexpr Checked<13, OrtSessionOptions*, ExecutionMode> set_execution_mode;
inline constexpr Checked<23, OrtSessionOptions*, Optimization> set_graph_optimization_level;
inline constexpr Checked<24, OrtSessionOptions*, int> set_intra_op_num_threads;
inline constexpr Getter<30, std::size_t, const OrtSession*> session_get_input_count;
inline constexpr Getter<31, std::size_t, const OrtSession*> session_get_output_count;
inline constexpr Maker<33, TypeInfo, const OrtSession*, std::size_t> session_get_input_type_info;
inline constexpr Maker<34, TypeInfo, const OrtSession*, std::size_t> session_get_output_type_info;
inline constexpr Getter<36, char*, const OrtSession*, std::size_t, OrtAllocator*>
    session_get_input_name;
inline constexpr Getter<37, char*, const OrtSession*, std::size_t, OrtAllocator*>
    session_get_output_name;
inline constexpr Maker<49, Value, const OrtMemoryInfo*, void*, std::size_t, const std::int64_t*,
                       std::size_t, ElementType>
    create_tensor_with_data;
inline constexpr Getter<51, void*, OrtValue*> get_tensor_mutable_data;
inline constexpr Getter<55, const OrtTensorTypeAndShapeInfo*, const OrtTypeInfo*>
    cast_type_info_to_tensor_info;
inline constexpr Getter<60, ElementType, const OrtTensorTypeAndShapeInfo*> get_tensor_element_type;
inline constexpr Getter<61, std::size_t, const OrtTensorTypeAndShapeInfo*> get_dimensions_count;
inline constexpr Checked<62, const OrtTensorTypeAndShapeInfo*, std::int64_t*, std::size_t>
    get_dimensions;
inline constexpr Maker<65, ShapeInfo, const OrtValue*> get_tensor_type_and_shape;
inline constexpr Maker<69, MemoryInfo, AllocatorType, DeviceMemory> create_cpu_memory_info;
inline constexpr Checked<76, OrtAllocator*, void*> allocator_free;
inline constexpr Getter<78, OrtAllocator*> get_allocator_with_default_options;

}  // namespace ort

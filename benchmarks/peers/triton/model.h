// What Triton says of a model that it has the backend load.

#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "requests.h"
#include "triton.h"

// What an instance needs to know of its model.
struct Model {
  std::string path;
  bool batches;
  int threads;
};

// The number after `key` in a model's configuration, or 0. Triton writes that text, without spaces
// and with every quote in a value escaped, so that `key` is found nowhere else.
inline int number(std::string_view configuration, std::string_view key) {
  const auto at = configuration.find(key);
  if (at == std::string_view::npos) return 0;
  return std::stoi(std::string(configuration.substr(at + key.size())));
}

inline std::string configuration(TRITONBACKEND_Model* model) {
  TRITONSERVER_Message* message;
  check(TRITONBACKEND_ModelConfig(model, triton::kConfigVersion, &message));
  const char* text = "";
  std::size_t length = 0;
  const Error failed(TRITONSERVER_MessageSerializeToJson(message, &text, &length));
  const std::string found(text, length);
  ignore(TRITONSERVER_MessageDelete(message));
  if (failed) throw Failure(triton::kInternal, TRITONSERVER_ErrorMessage(failed.get()));
  return found;
}

inline Model read_model(TRITONBACKEND_Model* model) {
  int artifact_type;
  const char* folder;
  check(TRITONBACKEND_ModelRepository(model, &artifact_type, &folder));
  std::uint64_t version;
  check(TRITONBACKEND_ModelVersion(model, &version));
  const auto path = std::filesystem::path(folder) / std::to_string(version) / "model.onnx";
  const std::string text = configuration(model);
  return {
      // ONNX Runtime looks for weights in files of their own beside the path that it is given.
      std::filesystem::canonical(path).string(),
      number(text, R"("max_batch_size":)") > 0,
      number(text, R"("intra_op_thread_count":{"string_value":")"),
  };
}

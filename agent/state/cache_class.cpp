#include "agent/state/cache_class.h"

namespace rouse::agent {
namespace {

constexpr std::string_view kReusableRoots[] = {
    "vllm/modelinfos", "vllm/deep_gemm", "vllm/flashinfer_autotune_cache", "flashinfer", "tilelang",
    "cute_dsl",        "tvm_ffi"};
constexpr std::string_view kMatchedRoots[] = {"vllm/torch_compile_cache", kStartupPlanRoot,
                                              "inductor", "triton"};

}  // namespace

std::string_view ToString(CacheClass of) {
  return json::NameOf<CacheClass>(of, kCacheClasses);
}

std::span<const std::string_view> RootsOf(CacheClass of) {
  if (of == CacheClass::kReusable) return kReusableRoots;
  return kMatchedRoots;
}

std::string_view RootOf(CacheClass of, std::string_view path) {
  for (const std::string_view root : RootsOf(of)) {
    if (path.size() > root.size() && path.starts_with(root) && path[root.size()] == '/') {
      return root;
    }
  }
  return {};
}

bool StaysBehind(std::string_view name) {
  // vLLM writes its environment there in plain text, an API key included.
  if (name == "cache_key_factors.json") return true;
  return name == "locks" || name.ends_with(".lock") || name.starts_with("tmp.") ||
         name.find(".tmp") != std::string_view::npos;
}

}  // namespace rouse::agent

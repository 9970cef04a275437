// The functions of a library that is opened at run time, found by name.

#pragma once

#include <dlfcn.h>

namespace rouse {

/// For a handle of dlopen:
///
///   SymbolFinder find(library);
///   find(functions.Init, "nvmlInit_v2");
///   if (find.missing() != nullptr) ...
class SymbolFinder {
 public:
  explicit SymbolFinder(void* library) : library_(library) {}

  template <typename Function>
  void operator()(Function& function, const char* name) {
    function = reinterpret_cast<Function>(::dlsym(library_, name));
    if (function == nullptr) missing_ = name;
  }

  /// The last name that the library does not have; null when it has them all.
  const char* missing() const { return missing_; }

 private:
  void* const library_;
  const char* missing_ = nullptr;
};

}  // namespace rouse

#include "connector/src/error.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "connector/src/rouse_connector.h"

namespace rouse::connector {
namespace {

// A plain array: a thread-local with a destructor would tie the library to its unloading order.
thread_local char last_error[512] = "";

}  // namespace

int Fail(int error, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  int written = std::vsnprintf(last_error, sizeof(last_error), format, arguments);
  va_end(arguments);
  if (written < 0) written = 0;
  if (static_cast<size_t>(written) < sizeof(last_error)) {
    char buffer[128];
    std::snprintf(last_error + written, sizeof(last_error) - static_cast<size_t>(written), ": %s",
                  strerror_r(error, buffer, sizeof(buffer)));
  }
  return -error;
}

}  // namespace rouse::connector

int rouse_abi_version(void) {
  return ROUSE_ABI_VERSION;
}

const char* rouse_last_error(void) {
  return rouse::connector::last_error;
}

// The error text behind rouse_last_error().

#pragma once

namespace rouse::connector {

/// Keeps the formatted text (cut to 511 bytes) and ": " plus errno's own for this thread; returns
/// -error. `error` is positive.
int Fail(int error, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace rouse::connector

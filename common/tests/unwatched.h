// Saves ThreadSanitizer what it cannot find anything in: a test's own copying of many bytes.
#pragma once

#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_ignore_thread_begin();
extern "C" void __tsan_ignore_thread_end();
#endif

namespace rouse {

/// While it lives, ThreadSanitizer does not look at what this thread reads and writes; it still
/// sees locks and threads. For bytes that no other thread of the process can reach, or is known to
/// be done with. The sanitizer would fault in four bytes of its own memory for each of them, which
/// is most of the time of such a test.
class Unwatched {
 public:
#if defined(__SANITIZE_THREAD__)
  Unwatched() {
    __tsan_ignore_thread_begin();
  }
  ~Unwatched() {
    __tsan_ignore_thread_end();
  }
#else
  Unwatched() {}
  ~Unwatched() {}
#endif
  Unwatched(const Unwatched&) = delete;
  Unwatched& operator=(const Unwatched&) = delete;
};

}  // namespace rouse

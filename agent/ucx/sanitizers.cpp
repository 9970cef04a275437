// What sanitizer builds are told about UCX, a stock library without instrumentation:
// ThreadSanitizer does not see its locks. Only what happens wholly inside UCX's libraries is passed
// over, and the lock that libucs releases in its destructor, which ThreadSanitizer has not seen it
// take.

#if defined(__SANITIZE_THREAD__)
extern "C" const char* __tsan_default_suppressions();
const char* __tsan_default_suppressions() {
  return "called_from_lib:libucs.so\n"
         "called_from_lib:libuct.so\n"
         "called_from_lib:libucp.so\n"
         "mutex:_dl_call_fini\n";
}
#endif

#if defined(__SANITIZE_ADDRESS__)
extern "C" const char* __lsan_default_suppressions();
const char* __lsan_default_suppressions() {
  return "leak:libucs.so\n"
         "leak:libuct.so\n"
         "leak:libucp.so\n"
         "leak:libucm.so\n";
}
#endif

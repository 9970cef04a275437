// What the sanitizers are told about UCX, which is a stock library without instrumentation: its own
// locks are invisible to ThreadSanitizer. Only what happens wholly inside UCX's libraries is suppressed.

extern "C" const char* __tsan_default_suppressions();
extern "C" const char* __lsan_default_suppressions();

const char* __tsan_default_suppressions() {
  return "called_from_lib:libucs.so\n"
         "called_from_lib:libuct.so\n"
         "called_from_lib:libucp.so\n";
}

const char* __lsan_default_suppressions() {
  return "leak:libucs.so\n"
         "leak:libuct.so\n"
         "leak:libucp.so\n"
         "leak:libucm.so\n";
}

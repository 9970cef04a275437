#include "agent/tests/agent_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "agent/tests/fake_operator.h"
#include "agent/tests/paths.h"

extern char** environ;

namespace rouse::agent {

namespace fs = std::filesystem;

namespace {

void SignalBelow(pid_t pid, int number) {
  const std::string id = std::to_string(pid);
  std::ifstream children("/proc/" + id + "/task/" + id + "/children");
  for (pid_t child = 0; children >> child;) {
    SignalBelow(child, number);
    ::kill(child, number);
  }
}

}  // namespace

std::string SanitizerReport(const std::string& text) {
  // "WARNING: ThreadSanitizer: ", "ERROR: AddressSanitizer: ", "x.cpp:1:2: runtime error: "
  const std::size_t found = std::min(text.find("Sanitizer: "), text.find(": runtime error: "));
  if (found == std::string::npos) return "";
  return text.substr(text.rfind('\n', found) + 1);
}

AgentProcess::AgentProcess(const std::string& pod, const std::string& operator_url,
                           std::map<std::string, std::string> environment) {
  fs::create_directories(model_dir());
  fs::create_directories(plugin_dir());
  std::map<std::string, std::string> all;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    all[text.substr(0, text.find('='))] = text.substr(text.find('=') + 1);
  }
  // Shared memory of UCX between two processes of different sandboxes is not what pods have.
  all.insert({{"UCX_TLS", "tcp"}, {"UCX_NET_DEVICES", "lo"}});
  all["ROUSE_OPERATOR_URL"] = operator_url;
  all["ROUSE_NAMESPACE"] = "default";
  all["ROUSE_POD"] = pod;
  all["ROUSE_POD_UID"] = "uid-" + pod;
  all["ROUSE_NODE"] = "node-a";
  all["ROUSE_LISTEN_HOST"] = "127.0.0.1";
  all["ROUSE_PORT"] = "0";
  all["ROUSE_LAUNCH_IDENTITY"] = "launch-1";
  all["ROUSE_ENGINE_SOCKET"] = socket();
  all["ROUSE_MODEL_DIR"] = model_dir();
  all["ROUSE_SLAB_MIB"] = "8";
  all["ROUSE_PEER_DEADLINE_SECONDS"] = "20";
  all["ROUSE_PULL_STALL_SECONDS"] = "3";
  for (auto& [name, value] : environment) all[name] = value;

  std::vector<std::string> texts;
  for (const auto& [name, value] : all) texts.push_back(name + "=" + value);
  std::vector<char*> env;
  for (std::string& text : texts) env.push_back(text.data());
  env.push_back(nullptr);
  std::string program = kAgentProgram;
  char* const argv[] = {program.data(), nullptr};

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  const std::string log_path = folder_.path() + "/agent.log";
  posix_spawn_file_actions_addopen(&actions, 2, log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND,
                                   0644);
  const int error = ::posix_spawn(&pid_, program.c_str(), &actions, nullptr, argv, env.data());
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) throw std::runtime_error("cannot start " + program);
}

AgentProcess::~AgentProcess() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  if (const std::string report = SanitizerReport(log()); !report.empty()) FAIL_CHECK(report);
}

std::string AgentProcess::log() const {
  std::ostringstream text;
  text << std::ifstream(folder_.path() + "/agent.log").rdbuf();
  return text.str();
}

void AgentProcess::Signal(int number) const {
  if (pid_ > 0) ::kill(pid_, number);
}

void AgentProcess::SignalChildren(int number) const {
  if (pid_ > 0) SignalBelow(pid_, number);
}

void AgentProcess::SignalAll(int number) const {
  SignalChildren(number);
  Signal(number);
}

HeldSource::HeldSource(const AgentProcess& agent) : agent_(agent) {
  agent_.SignalChildren(SIGSTOP);
}

HeldSource::~HeldSource() {
  agent_.SignalChildren(SIGCONT);
}

void HeldSource::LetGoFor(std::chrono::milliseconds moment) const {
  agent_.SignalChildren(SIGCONT);
  std::this_thread::sleep_for(moment);
  agent_.SignalChildren(SIGSTOP);
}

SlowSource::SlowSource(const AgentProcess& agent, std::chrono::milliseconds stopped,
                       std::chrono::milliseconds running)
    : held_(agent), thread_([this, stopped, running](const std::stop_token& stop) {
        while (!stop.stop_requested()) {
          std::this_thread::sleep_for(stopped);
          held_.LetGoFor(running);
        }
      }) {}

std::optional<int> AgentProcess::Wait(std::chrono::milliseconds longest) {
  int status = 0;
  const bool ended = Eventually([&] { return ::waitpid(pid_, &status, WNOHANG) == pid_; }, longest);
  if (!ended) return std::nullopt;
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace rouse::agent

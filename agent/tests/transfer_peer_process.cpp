#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "agent/tests/paths.h"
#include "agent/tests/transfer_fixture.h"

extern char** environ;

namespace rouse::transfer {

PeerProcess::PeerProcess(const std::vector<std::string>& arguments) {
  int to_child[2];
  int from_child[2];
  if (::pipe2(to_child, O_CLOEXEC) != 0 || ::pipe2(from_child, O_CLOEXEC) != 0) {
    throw std::runtime_error(std::string("pipe: ") + std::strerror(errno));
  }
  input_ = to_child[1];
  output_ = from_child[0];
  std::vector<std::string> words = {kTransferPeerProgram};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, to_child[0], STDIN_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, from_child[1], STDOUT_FILENO);
  posix_spawnattr_t group;
  ::posix_spawnattr_init(&group);
  ::posix_spawnattr_setflags(&group, POSIX_SPAWN_SETPGROUP);
  const int error = ::posix_spawn(&pid_, argv[0], &actions, &group, argv.data(), environ);
  ::posix_spawnattr_destroy(&group);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(to_child[0]);
  ::close(from_child[1]);
  if (error != 0) throw std::runtime_error("start " + words[0] + ": " + std::strerror(error));
}

PeerProcess::~PeerProcess() {
  ::close(input_);
  ::close(output_);
  ::kill(-pid_, SIGCONT);
  int status = 0;
  ::waitpid(pid_, &status, 0);
  // As it does when it throws, and when a sanitizer has reported something (on standard error).
  if (WIFEXITED(status) && WEXITSTATUS(status) != 0) {
    FAIL_CHECK("the peer ended with status " << WEXITSTATUS(status));
  }
}

std::string PeerProcess::ReadLine() {
  char buffer[65536];
  for (;;) {
    if (const std::size_t end = rest_.find('\n'); end != std::string::npos) {
      std::string line = rest_.substr(0, end);
      rest_.erase(0, end + 1);
      return line;
    }
    const ssize_t got = ::read(output_, buffer, sizeof(buffer));
    if (got <= 0) throw std::runtime_error("the peer ended before it answered");
    rest_.append(buffer, static_cast<std::size_t>(got));
  }
}

void PeerProcess::WriteLine(const std::string& line) {
  const std::string text = line + "\n";
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t put = ::write(input_, text.data() + done, text.size() - done);
    if (put <= 0) throw std::runtime_error("the peer does not read");
    done += static_cast<std::size_t>(put);
  }
}

void PeerProcess::Signal(int signal) {
  ::kill(pid_, signal);
}
void PeerProcess::SignalGroup(int signal) {
  ::kill(-pid_, signal);
}

bool PeerProcess::Alive() const {
  siginfo_t info = {};
  return ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
         info.si_pid == 0;
}

namespace {

std::vector<std::string> Publish(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "publish");
  return arguments;
}

}  // namespace

TestSource::TestSource(std::vector<std::string> arguments)
    : PeerProcess(Publish(std::move(arguments))),
      answer_(Must(OpenResponseFromJson(Must(json::Parse(ReadLine(), "answer"))))) {}

void TestSource::Reopen() {
  WriteLine("open");
  answer_ = Must(OpenResponseFromJson(Must(json::Parse(ReadLine(), "answer"))));
}

}  // namespace rouse::transfer

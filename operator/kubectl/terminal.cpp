#include "operator/kubectl/terminal.h"

#include <pthread.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <string_view>

namespace rouse::kubectl {
namespace {

std::string_view Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string_view() : std::string_view(value);
}

// A picture much narrower or wider than this helps nobody.
constexpr int kLeastColumns = 40;
constexpr int kMostColumns = 400;

sigset_t Signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&signals, signal);
  return signals;
}

}  // namespace

bool IsTerminal() {
  return isatty(STDOUT_FILENO) == 1;
}

Screen ScreenOfOutput() {
  Screen screen;
  const std::string_view wanted = Environment("COLUMNS");
  int columns = 0;
  const auto [end, error] = std::from_chars(wanted.data(), wanted.data() + wanted.size(), columns);
  winsize size{};
  if (error == std::errc() && end == wanted.data() + wanted.size() && columns > 0) {
    screen.columns = columns;
  } else if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    screen.columns = size.ws_col;
  }
  screen.columns = std::clamp(screen.columns, kLeastColumns, kMostColumns);
  screen.colour = IsTerminal() && Environment("NO_COLOR").empty() && Environment("TERM") != "dumb";
  return screen;
}

int RowsOfOutput() {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 ? size.ws_row : 24;
}

Interrupts::Interrupts() {
  const sigset_t signals = Signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "signals");
    Wait();
  });
}

Interrupts::~Interrupts() {
  ending_ = true;
  pthread_kill(thread_.native_handle(), SIGTERM);
  thread_.join();
}

void Interrupts::RemoveFirst(std::shared_ptr<const kube::SecretFolder> secrets) {
  const std::lock_guard lock(mutex_);
  secrets_ = std::move(secrets);
}

void Interrupts::Wait() {
  const sigset_t signals = Signals();
  int signal = 0;
  while (sigwait(&signals, &signal) != 0) {
  }
  if (ending_) return;
  const std::lock_guard lock(mutex_);
  if (secrets_) secrets_->Remove();
  _exit(128 + signal);
}

}  // namespace rouse::kubectl

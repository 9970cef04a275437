// Starts the real rouse-agent program in a folder of its own, and ends it.

#pragma once

#include <sys/types.h>

#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <thread>

#include "agent/tests/temp_folder.h"

namespace rouse::agent {

/// What a sanitizer says in this text, from its first line on; empty when it says nothing.
std::string SanitizerReport(const std::string& text);

class AgentProcess {
 public:
  /// `environment` adds to (or replaces) what an agent needs: ROUSE_... as the operator gives them.
  AgentProcess(const std::string& pod, const std::string& operator_url,
               std::map<std::string, std::string> environment);
  /// Kills it if it still runs. What a sanitizer reported of it, or of its children, fails the
  /// test.
  ~AgentProcess();
  AgentProcess(const AgentProcess&) = delete;
  AgentProcess& operator=(const AgentProcess&) = delete;

  pid_t pid() const { return pid_; }
  std::string socket() const { return folder_.path() + "/engine.sock"; }
  std::string model_dir() const { return folder_.path() + "/model"; }
  std::string plugin_dir() const { return folder_.path() + "/plugin"; }
  const TempFolder& folder() const { return folder_; }
  std::string log() const;

  void Signal(int number) const;
  /// Only to its children and theirs (the processes that hold the weights open for peers).
  void SignalChildren(int number) const;
  /// To all of them.
  void SignalAll(int number) const;
  /// The exit status (128 + signal when it was killed); nullopt when it still runs after `longest`.
  std::optional<int> Wait(std::chrono::milliseconds longest = std::chrono::seconds(60));

 private:
  TempFolder folder_;
  pid_t pid_ = -1;
};

/// Keeps an agent's weights from being read, until destroyed, but for the moments that it gives:
/// what is pulled stays as far as it is.
class HeldSource {
 public:
  explicit HeldSource(const AgentProcess& agent);
  ~HeldSource();
  HeldSource(const HeldSource&) = delete;
  HeldSource& operator=(const HeldSource&) = delete;

  void LetGoFor(std::chrono::milliseconds moment) const;

 private:
  const AgentProcess& agent_;
};

/// Lets an agent's weights be read only a small part of the time, until destroyed.
class SlowSource {
 public:
  SlowSource(const AgentProcess& agent, std::chrono::milliseconds stopped,
             std::chrono::milliseconds running);

 private:
  const HeldSource held_;
  std::jthread thread_;
};

}  // namespace rouse::agent

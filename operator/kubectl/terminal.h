// The terminal that standard output may be, and what ends the program early.

#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>

#include "operator/kube/config.h"
#include "operator/kubectl/text.h"

namespace rouse::kubectl {

/// Whether standard output is a terminal, on which a picture can be drawn anew.
bool IsTerminal();

/// How wide it is ($COLUMNS, else what the terminal says, else 80), and whether colours are wanted:
/// on a terminal that has them, unless NO_COLOR is set and not empty.
Screen ScreenOfOutput();

/// Its rows; 24 where that is not known.
int RowsOfOutput();

/// Ends the process on SIGINT, SIGTERM and SIGHUP, with status 128 + the signal's number, and
/// without destructors, since calls to the API server may be under way. Make it before any other
/// thread: those must not get the signals. One thread ("signals").
class Interrupts {
 public:
  Interrupts();
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  /// To be removed before the process ends; may be null.
  void RemoveFirst(std::shared_ptr<const kube::SecretFolder> secrets);

 private:
  void Wait();

  std::mutex mutex_;
  std::shared_ptr<const kube::SecretFolder> secrets_;  ///< Guarded by mutex_.
  std::atomic<bool> ending_{false};
  std::thread thread_;
};

}  // namespace rouse::kubectl

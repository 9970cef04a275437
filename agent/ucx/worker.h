// UCX, wrapped: a worker (what makes communication progress) and the thread that drives one.
//
// A Worker belongs to one thread at a time: the one that pulls, or its ProgressThread. Only Signal
// may be called from others. The source of a pull needs a ProgressThread: without RDMA hardware UCX
// answers a peer's get in software, and only while the source's worker is driven.

#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "agent/ucx/context.h"
#include "common/result.h"

struct ucp_worker;

namespace rouse::ucx {

class Worker {
 public:
  static Result<std::unique_ptr<Worker>> Create(std::shared_ptr<Context> context);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  /// The address that a peer connects to: raw bytes, opaque to everyone but UCX.
  Result<std::string> Address() const;

  /// Drives communication once; true when something happened.
  bool Progress();

  /// Sleeps until something may have happened, Signal was called, or `timeout` is over.
  Status Wait(std::chrono::milliseconds timeout);

  /// Ends a Wait under way, or the next one. Callable from any thread.
  void Signal();

  const std::shared_ptr<Context>& context() const { return context_; }
  ucp_worker* handle() const { return handle_; }

 private:
  Worker(std::shared_ptr<Context> context, ucp_worker* handle, int event_fd)
      : context_(std::move(context)), handle_(handle), event_fd_(event_fd) {}

  std::shared_ptr<Context> context_;
  ucp_worker* handle_;
  int event_fd_;  // UCX's
};

/// Drives a worker on a thread of its own until destroyed; sleeps while nothing happens.
class ProgressThread {
 public:
  /// `worker` must outlive this object, and belongs to its thread until then. `name` has at most 15
  /// characters.
  ProgressThread(Worker& worker, std::string name);
  ~ProgressThread();
  ProgressThread(const ProgressThread&) = delete;
  ProgressThread& operator=(const ProgressThread&) = delete;

 private:
  Worker& worker_;
  std::jthread thread_;
};

}  // namespace rouse::ucx

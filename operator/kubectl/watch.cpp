#include "operator/kubectl/watch.h"

#include <algorithm>
#include <condition_variable>
#include <iostream>
#include <mutex>
#include <sstream>

#include "operator/kube/informer.h"
#include "operator/kube/store.h"
#include "operator/kubectl/cluster.h"
#include "operator/kubectl/terminal.h"

namespace rouse::kubectl {
namespace {

using kube::Json;
using std::chrono::milliseconds;

/// Changes that come together make one picture, but for so many at most.
constexpr milliseconds kSettle{100};
constexpr int kMostTogether = 5;
/// How often a terminal's picture is made anew without a change: seconds of what is under way go
/// on.
constexpr milliseconds kTick{500};
constexpr milliseconds kFirstList{30'000};

// Tells this thread that an object has changed; informers' threads call Ring.
class Bell {
 public:
  void Ring() {
    {
      const std::lock_guard lock(mutex_);
      rung_ = true;
    }
    changed_.notify_one();
  }
  bool Wait(milliseconds timeout) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, timeout, [this] { return rung_; });
    return std::exchange(rung_, false);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool rung_ = false;  ///< Guarded by mutex_.
};

kube::InformerOptions Options(kube::Resource resource, const std::string& ns,
                              const std::string& selector = "") {
  kube::InformerOptions options;
  options.resource = std::move(resource);
  options.ns = ns;
  options.label_selector = selector;
  return options;
}

std::vector<Json> All(const kube::Store<Json>& store) {
  std::vector<Json> out;
  for (const auto& object : store.All()) out.push_back(*object);
  return out;
}

// `text` from the first row of the terminal on, as far as it has rows and columns; nothing
// flickers, since each line is overwritten before what is left of it is cleared.
std::string Redrawn(const std::string& text, int rows) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  const auto room = static_cast<std::size_t>(std::max(rows - 1, 2));
  if (lines.size() > room) {
    const std::size_t more = lines.size() - (room - 1);
    lines.resize(room - 1);
    lines.push_back("… " + std::to_string(more) + " more lines");
  }
  std::string out = "\x1b[?7l\x1b[H";  // What is too long for a line does not go on in the next.
  for (const std::string& line : lines) out += line + "\x1b[K\n";
  return out + "\x1b[J\x1b[?7h";
}

class Watching {
 public:
  Watching(kube::Client& client, const WatchOptions& options)
      : options_(options),
        services_(kube::KeepWhole, {}, [this](auto&&...) { bell_.Ring(); }),
        pods_(kube::KeepWhole, {}, [this](auto&&...) { bell_.Ring(); }),
        services_informer_(client, services_, Options(kube::ModelServices(), options.ns)),
        pods_informer_(client, pods_,
                       Options(kube::Pods(), options.ns, PodSelector(options.name))) {}

  Status Run() {
    for (kube::Informer* informer : {&services_informer_, &pods_informer_}) {
      if (informer->WaitSynced(kFirstList)) continue;
      const std::string why = informer->last_error();
      return Unavailable(why.empty() ? "the API server sent no list of ModelServices and pods"
                                     : why);
    }
    if (terminal_) std::cout << "\x1b[2J";
    bool changed = true;
    while (std::cout.good()) {
      const std::vector<ServiceView> views = Views();
      if (views.empty() && !options_.name.empty()) {
        return NotFound("ModelService " + options_.ns + "/" + options_.name + " is gone");
      }
      if (changed || terminal_) Show(views);
      changed = bell_.Wait(kTick);
      for (int more = 0; changed && more < kMostTogether && bell_.Wait(kSettle); ++more) {
      }
    }
    return {};
  }

 private:
  std::vector<ServiceView> Views() const {
    std::vector<ServiceView> views = MakeViews(All(services_), All(pods_));
    std::erase_if(views, [&](const ServiceView& view) {
      return !options_.name.empty() && view.service.metadata.name != options_.name;
    });
    return views;
  }

  void Show(const std::vector<ServiceView>& views) {
    const auto now =
        std::chrono::time_point_cast<std::chrono::microseconds>(std::chrono::system_clock::now());
    std::string text = views.empty() ? "No ModelServices found.\n" : options_.render(views, now);
    for (const kube::Informer* informer : {&services_informer_, &pods_informer_}) {
      if (const std::string why = informer->last_error(); !why.empty()) {
        text += "not up to date: " + Printable(why) + "\n";
      }
    }
    if (terminal_) {
      std::cout << Redrawn(text, RowsOfOutput()) << std::flush;
    } else if (text != last_) {
      std::cout << (last_.empty() ? "" : "\n") << text << std::flush;
    }
    last_ = std::move(text);
  }

  const WatchOptions& options_;
  const bool terminal_ = IsTerminal();
  Bell bell_;
  std::string last_;
  kube::Store<Json> services_;
  kube::Store<Json> pods_;
  kube::Informer services_informer_;
  kube::Informer pods_informer_;
};

}  // namespace

Status Watch(kube::Client& client, const WatchOptions& options) {
  return Watching(client, options).Run();
}

}  // namespace rouse::kubectl

#include "bench/simulate_fanout/fabric.h"

#include <algorithm>
#include <cmath>

namespace rouse::fanout {

Port Fabric::AddPort(double rate) {
  ports_.push_back({.rate = rate, .flows = {}});
  return static_cast<Port>(ports_.size() - 1);
}

FlowId Fabric::Start(Port from, Port to, std::uint64_t bytes, Nanoseconds now) {
  FlowId id = 0;
  if (free_.empty()) {
    id = static_cast<FlowId>(flows_.size());
    flows_.emplace_back();
  } else {
    id = free_.back();
    free_.pop_back();
  }
  Flow& flow = flows_[id];
  const std::uint32_t version = flow.version + 1;
  flow = {.from = from,
          .to = to,
          .place_from = static_cast<std::uint32_t>(ports_[from].flows.size()),
          .place_to = static_cast<std::uint32_t>(ports_[to].flows.size()),
          .bytes_left = static_cast<double>(bytes),
          .rate = 0,
          .since = now,
          .ends = kNever,
          .queued = kNever,
          .version = version};
  ports_[from].flows.push_back(id);
  ports_[to].flows.push_back(id);
  Reshare(from, now);
  Reshare(to, now);
  return id;
}

void Fabric::Cancel(FlowId flow, Nanoseconds now) {
  Remove(flow, now);
}

// Entries are dropped or put back when they come up, because a flow that got slower is left where
// it is in the queue: most changes cost nothing there.
Nanoseconds Fabric::NextEnd() {
  while (!ends_.empty()) {
    const Entry entry = ends_.top();
    Flow& flow = flows_[entry.flow];
    if (entry.version == flow.version && flow.ends <= entry.at) return entry.at;
    ends_.pop();
    if (entry.version == flow.version) Enqueue(entry.flow);
  }
  return kNever;
}

FlowId Fabric::EndNext(Nanoseconds now) {
  const FlowId id = ends_.top().flow;
  ends_.pop();
  Remove(id, now);
  return id;
}

void Fabric::Remove(FlowId id, Nanoseconds now) {
  Flow& flow = flows_[id];
  const auto take = [&](Port port, std::uint32_t place, std::uint32_t Flow::*place_of) {
    auto& list = ports_[port].flows;
    list[place] = list.back();
    flows_[list[place]].*place_of = place;
    list.pop_back();
  };
  take(flow.from, flow.place_from, &Flow::place_from);
  take(flow.to, flow.place_to, &Flow::place_to);
  ++flow.version;
  free_.push_back(id);
  Reshare(flow.from, now);
  Reshare(flow.to, now);
}

void Fabric::Reshare(Port port, Nanoseconds now) {
  const auto share = [&](Port of) {
    return ports_[of].rate / static_cast<double>(ports_[of].flows.size());
  };
  for (const FlowId id : ports_[port].flows) {
    Flow& flow = flows_[id];
    const double rate = std::min(share(flow.from), share(flow.to));
    if (rate == flow.rate) continue;
    flow.bytes_left -= flow.rate * static_cast<double>(now - flow.since) * 1e-9;
    flow.bytes_left = std::max(flow.bytes_left, 0.0);
    flow.since = now;
    flow.rate = rate;
    flow.ends = now + static_cast<Nanoseconds>(std::ceil(flow.bytes_left / rate * 1e9));
    if (flow.ends < flow.queued) {
      ++flow.version;
      Enqueue(id);
    }
  }
}

void Fabric::Enqueue(FlowId id) {
  Flow& flow = flows_[id];
  flow.queued = flow.ends;
  ends_.push({.at = flow.ends, .flow = id, .version = flow.version});
}

}  // namespace rouse::fanout

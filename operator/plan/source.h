// Who can hand out weights, now or soon. Pure.

#pragma once

#include <string>
#include <vector>

#include "common/messages.h"
#include "operator/plan/observed.h"

namespace rouse::plan {

/// Why this instance cannot come up any more, for people; empty while it may.
std::string FailureOf(const Instance& instance, const Policy& policy, TimePoint now);

/// It runs, holds published and digested weights, and says where it can be reached. It need not
/// serve: an instance that pulled its weights hands them on before its engine is warm.
bool IsServable(const Instance& instance);

/// Not servable yet, and can be expected to become so without a peer's help.
bool IsComing(const Instance& instance, api::Fallback fallback, const Policy& policy,
              TimePoint now);

/// It is pulling its weights and hands on what it has verified, and says where.
bool IsArriving(const Instance& instance);

/// How far from each other two instances run.
Distance DistanceBetween(const Instance& a, const Instance& b);

/// The instances that `target` may pull from, best first: the nearest servable one, so that a
/// target never has only others to ask that have nothing either; then nearest first, servable ones
/// before arriving ones, ready before not ready, else in an order that differs between targets, so
/// that they do not all ask the same. `others` may hold any instances; those of another service,
/// owner or launch identity, and the target itself, are left out. At most 64.
std::vector<Peer> PeersFor(const Instance& target, const std::vector<const Instance*>& others);

/// The others of the same launch that run or start, nearest first: who may have compile caches.
/// Those that have failed, leave or have no node yet are left out. At most 64; the 8 that were
/// decided first are always among them: of many that start together all wait for the same one.
std::vector<Sibling> SiblingsOf(const Instance& target, const std::vector<const Instance*>& others);

/// Those of a namespace's instances that keep compile caches, for themselves and as copies for
/// others. At most 256; of more always the same ones, whoever asks.
std::vector<Keeper> KeepersOf(const std::vector<const Instance*>& instances);

/// Whether any of `others` can hand out weights to `target`, or may come to: when not, it is of no
/// use for it to wait. Of those that wait for peers themselves only the ones that started earlier
/// count, so that no two wait for each other.
bool IsExpecting(const Instance& target, const std::vector<const Instance*>& others,
                 const Policy& policy, TimePoint now);

}  // namespace rouse::plan

// What a bundle may be reused by: who made it, with what, on which kind of machine.

#pragma once

#include <string>
#include <vector>

#include "agent/state/cache_class.h"

namespace rouse::agent {

/// The parts of a machine that compiled code depends on.
struct Machine {
  std::string architecture;           ///< "x86_64"
  std::vector<std::string> gpus;      ///< Names of their models, each once, sorted; as far as seen.
  std::vector<std::string> features;  ///< Of the processor: those that Inductor chooses code by.

  bool operator==(const Machine&) const = default;
};

/// `identity` is the launch identity for Matched, the engine's (model and image) for Reusable.
/// Pure.
std::string Fingerprint(CacheClass of, const std::string& identity, const Machine& machine);

/// The features of /proc/cpuinfo's text that are kept. Pure.
std::vector<std::string> FeaturesOf(std::string_view cpuinfo);

/// This machine; `gpus` as the driver tells their names.
Machine ThisMachine(std::vector<std::string> gpus);

}  // namespace rouse::agent

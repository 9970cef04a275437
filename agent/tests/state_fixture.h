// A folder with an engine's caches in it, and what is the same in several tests of them.

#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "agent/state/bundle.h"

namespace rouse::agent {

inline const std::string kFingerprint(64, 'f');

/// A file of a bundle with this content.
BundleEntry FileEntry(const std::string& path, const std::string& content);
BundleEntry LinkEntry(const std::string& path, const std::string& target);

/// Two files and a link, all in order.
Bundle GoodBundle();

/// A bundle that must be refused: what is wrong with it, and how it is made of GoodBundle's JSON.
struct HostileBundle {
  std::string what;
  std::function<void(json::Json&)> change;
};
std::vector<HostileBundle> HostileBundles();

/// Writes caches of both classes below a state folder, as an engine would. `seed` makes others.
void WriteCaches(const std::string& state_folder, const std::string& seed = "");

/// Path → content of every file below a folder, links as "-> target".
std::map<std::string, std::string> TreeOf(const std::string& folder);

}  // namespace rouse::agent

// Where the next page of a list begins, read from the head of a page. Pure.

#pragma once

#include <string>
#include <string_view>

namespace rouse::kube {

/// metadata.continue of a list's text, without reading its items where these come after metadata,
/// as the API server writes them. So the next page can be asked for before this one is parsed.
/// Empty when there is none, or the text is no list: then only a whole parse can tell.
std::string ContinueTokenOf(std::string_view page);

}  // namespace rouse::kube

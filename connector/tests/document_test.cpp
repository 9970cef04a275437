#include <fcntl.h>

#include <cerrno>
#include <string>

#include "connector/src/rouse_connector.h"
#include "connector/tests/support.h"

using namespace rouse::connector_test;
using Catch::Matchers::Contains;

TEST_CASE("A document is read back as it was written and cannot be changed", "[connector]") {
  NoDescriptorLeak no_leak;
  std::string text(3000000, 'd');
  text += "end";
  Fd document(rouse_document_create(text.data(), text.size()));
  REQUIRE(document.get() >= 0);
  std::string back(text.size(), '?');
  REQUIRE(rouse_document_read(document.get(), back.data(), back.size()) == 0);
  CHECK(back == text);

  CHECK(pwrite(document.get(), "x", 1, 0) < 0);
  CHECK(ftruncate(document.get(), 10) < 0);
  CHECK(ftruncate(document.get(), 4000000) < 0);
  int seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
  CHECK(fcntl(document.get(), F_GET_SEALS) == seals);
}

TEST_CASE("A document of another length than announced is refused", "[connector]") {
  NoDescriptorLeak no_leak;
  Fd document(rouse_document_create("12345", 5));
  std::string back(10, '?');
  CHECK(rouse_document_read(document.get(), back.data(), 6) == -EINVAL);
  CHECK_THAT(rouse_last_error(), Contains("5 bytes, 6 were announced"));
  CHECK(rouse_document_read(document.get(), back.data(), 4) == -EINVAL);
  CHECK(rouse_document_read(-1, back.data(), 4) == -EBADF);
}

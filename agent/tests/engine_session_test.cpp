#include <catch2/catch.hpp>

#include "agent/engine/session.h"
#include "agent/tests/engine_steps.h"

using namespace rouse;
using namespace rouse::agent;

namespace {

const Identity kIdentity{{"model", "m"}, {"dtype", "bfloat16"}};
const WeightOffer kNothing{
    .identity = std::nullopt, .reason = "nobody has them", .storage_allowed = true};
const WeightOffer kPulled{
    .identity = kIdentity, .reason = "pulled from a", .storage_allowed = true};

Result<EngineRequest> Hello(Identity identity = kIdentity) {
  HelloRequest hello;
  hello.identity = std::move(identity);
  return EngineRequest(std::move(hello));
}

}  // namespace

TEST_CASE(
    "An equal identity is welcomed from the peer, any other from storage with each field named") {
  EngineSession equal;
  const EngineStep peer = equal.OnRequest(Hello(), kPulled);
  CHECK(std::get<step::Welcome>(peer).from == WeightsFrom::kPeer);
  CHECK(std::get<step::Welcome>(peer).welcome["source"] == "Peer");
  CHECK(equal.rank() == 0u);

  EngineSession other;
  const EngineStep storage =
      other.OnRequest(Hello({{"model", "m"}, {"dtype", "float16"}, {"extra", "x"}}), kPulled);
  CHECK(std::get<step::Welcome>(storage).from == WeightsFrom::kStorage);
  const std::string reason = std::get<step::Welcome>(storage).welcome["reason"];
  CHECK(reason.find("dtype") != std::string::npos);
  CHECK(reason.find("extra") != std::string::npos);
  CHECK(reason.find("model") == std::string::npos);

  EngineSession none;
  CHECK(std::get<step::Welcome>(none.OnRequest(Hello(), kNothing)).welcome["reason"] ==
        "nobody has them");
}

TEST_CASE("Only an engine that is to begin without weights may publish placeholders") {
  const EngineRequest placeholders =
      PublishRequest{.rank = 0, .manifest_bytes = 1, .placeholders = true};
  const auto created = [](const WeightOffer& offer) {
    EngineSession session;
    session.OnRequest(Hello(), offer);
    session.OnArenaCreated();
    return session;
  };
  WeightOffer without = kNothing;
  without.begin_without = true;
  EngineSession session;
  CHECK(std::get<step::Welcome>(session.OnRequest(Hello(), without)).welcome["source"] ==
        "Nowhere");
  session.OnArenaCreated();
  CHECK(std::holds_alternative<step::Publish>(session.OnRequest(placeholders, without)));

  for (const WeightOffer& offer : {kNothing, kPulled}) {
    EngineSession other = created(offer);
    const EngineStep refused = other.OnRequest(placeholders, offer);
    CHECK(std::get<step::Reply>(refused).body["message"].get<std::string>().find("Nowhere") !=
          std::string::npos);
  }

  // What is at hand goes before nothing.
  WeightOffer pulled = kPulled;
  pulled.begin_without = true;
  EngineSession lucky;
  CHECK(std::get<step::Welcome>(lucky.OnRequest(Hello(), pulled)).from == WeightsFrom::kPeer);
}

TEST_CASE("Where storage is not allowed an engine without fitting weights is refused") {
  WeightOffer offer = kPulled;
  offer.storage_allowed = false;
  EngineSession session;
  const EngineStep refused =
      session.OnRequest(Hello({{"model", "n"}, {"dtype", "bfloat16"}}), offer);
  CHECK(std::get<step::Refuse>(refused).reason.find("model: \"n\" here, \"m\" there") !=
        std::string::npos);
  CHECK_FALSE(session.rank().has_value());
  offer.identity.reset();
  CHECK(std::holds_alternative<step::Refuse>(session.OnRequest(Hello(), offer)));
}

TEST_CASE(
    "What the agent holds of a GPU is told to who has not said Hello yet, and changes nothing") {
  EngineSession session;
  const auto step = session.OnRequest(Request(HeldMemoryRequest{.gpu = "GPU-1"}), kPulled);
  CHECK(std::get<step::TellHeld>(step).request.gpu == "GPU-1");
  CHECK_FALSE(session.rank().has_value());
  REQUIRE(std::holds_alternative<step::Welcome>(session.OnRequest(Hello(), kPulled)));
}

TEST_CASE("Requests out of turn are answered with an error and change nothing") {
  EngineSession session;
  CHECK(ErrorOf(session.OnRequest(Request(PhaseRequest{}), kPulled)).find("before Hello") !=
        std::string::npos);
  REQUIRE(std::holds_alternative<step::Welcome>(session.OnRequest(Hello(), kNothing)));
  CHECK(ErrorOf(session.OnRequest(Hello(), kNothing)).find("twice") != std::string::npos);
  CHECK(ErrorOf(session.OnRequest(Request(AwaitWeightsRequest{}), kNothing))
            .find("did not say Peer") != std::string::npos);
  CHECK(ErrorOf(session.OnRequest(Request(GetSlabsRequest{}), kNothing)).find("GetSlabs before") !=
        std::string::npos);
  CHECK(ErrorOf(session.OnRequest(Request(PublishRequest{}), kNothing)).find("CreateArena first") !=
        std::string::npos);
  CHECK(ErrorOf(session.OnRequest(Request(CreateArenaRequest{.rank = 1, .bytes = 1}), kNothing))
            .find("rank 1") != std::string::npos);
  CHECK(std::holds_alternative<step::CreateArena>(
      session.OnRequest(Request(CreateArenaRequest{.rank = 0, .bytes = 1}), kNothing)));
  // It was not performed yet, so there is nothing to publish.
  CHECK_FALSE(ErrorOf(session.OnRequest(Request(PublishRequest{}), kNothing)).empty());
  session.OnArenaCreated();
  CHECK(std::holds_alternative<step::SendSlabs>(
      session.OnRequest(Request(GetSlabsRequest{}), kNothing)));
  CHECK(std::holds_alternative<step::Publish>(
      session.OnRequest(Request(PublishRequest{}), kNothing)));
  session.OnPublished();
  CHECK_FALSE(ErrorOf(session.OnRequest(Request(PublishRequest{}), kNothing)).empty());
}

TEST_CASE("A stream is opened, asked for its batches and closed, where storage is allowed") {
  const auto open = Request(OpenStreamRequest{.rank = 0, .folder = "/m", .files = {{"a", 1}}});
  EngineSession session;
  CHECK(ErrorOf(session.OnRequest(open, kNothing)).find("before Hello") != std::string::npos);
  REQUIRE(std::holds_alternative<step::Welcome>(session.OnRequest(Hello(), kNothing)));
  for (const auto& early : {Request(NextBatchRequest{}), Request(CloseStreamRequest{})}) {
    CHECK(ErrorOf(session.OnRequest(early, kNothing)).find("OpenStream first") !=
          std::string::npos);
  }
  WeightOffer strict = kNothing;
  strict.storage_allowed = false;
  CHECK(ErrorOf(session.OnRequest(open, strict)).find("fallback None") != std::string::npos);
  CHECK(std::holds_alternative<step::OpenStream>(session.OnRequest(open, kNothing)));
  session.OnStreamOpened();
  CHECK(ErrorOf(session.OnRequest(open, kNothing)).find("last stream") != std::string::npos);
  CHECK(ErrorOf(session.OnRequest(Request(NextBatchRequest{.rank = 1}), kNothing)).find("rank 1") !=
        std::string::npos);
  CHECK(std::holds_alternative<step::NextBatch>(
      session.OnRequest(Request(NextBatchRequest{}), kNothing)));
  CHECK(std::holds_alternative<step::CloseStream>(
      session.OnRequest(Request(CloseStreamRequest{}), kNothing)));
  session.OnStreamClosed();
  CHECK_FALSE(ErrorOf(session.OnRequest(Request(NextBatchRequest{}), kNothing)).empty());
  CHECK(std::holds_alternative<step::OpenStream>(session.OnRequest(open, kNothing)));
}

TEST_CASE(
    "An engine that was promised a peer's weights may still load from storage, where that is "
    "allowed") {
  EngineSession session;
  REQUIRE(std::holds_alternative<step::Welcome>(session.OnRequest(Hello(), kPulled)));
  CHECK(std::holds_alternative<step::AwaitWeights>(
      session.OnRequest(Request(AwaitWeightsRequest{}), kPulled)));
  CHECK(std::holds_alternative<step::CreateArena>(
      session.OnRequest(Request(CreateArenaRequest{}), kPulled)));
  WeightOffer strict = kPulled;
  strict.storage_allowed = false;
  CHECK(ErrorOf(session.OnRequest(Request(CreateArenaRequest{}), strict)).find("fallback None") !=
        std::string::npos);
}

TEST_CASE("A client that gets too much wrong is let go, one of another version at once") {
  EngineSession session;
  const Result<EngineRequest> wrong = InvalidArgument("nonsense");
  for (int i = 1; i < 16; ++i)
    CHECK_FALSE(std::get<step::Reply>(session.OnRequest(wrong, kNothing)).close);
  CHECK(std::get<step::Reply>(session.OnRequest(wrong, kNothing)).close);

  EngineSession other;
  const Result<EngineRequest> version = FailedPrecondition("speaks 2");
  CHECK(std::get<step::Reply>(other.OnRequest(version, kNothing)).close);
}

TEST_CASE("A rank gives its arena up, and asks for the next one") {
  const ReleaseArenaRequest release{};
  const AwaitArenaRequest await{};
  WeightOffer offer = kPulled;
  EngineSession session;
  CHECK(ErrorOf(session.OnRequest(Request(release), offer)).find("before Hello") !=
        std::string::npos);
  SECTION("of a peer's weights") {
    REQUIRE(std::holds_alternative<step::Welcome>(session.OnRequest(Hello(), offer)));
    CHECK(ErrorOf(session.OnRequest(Request(release), offer)).find("ReleaseArena without") !=
          std::string::npos);
    session.OnWeightsDelivered();
  }
  SECTION("of its own") {
    REQUIRE(std::holds_alternative<step::Welcome>(session.OnRequest(Hello(), kNothing)));
    session.OnArenaCreated();
    CHECK(ErrorOf(session.OnRequest(Request(release), offer)).find("ReleaseArena without") !=
          std::string::npos);
    session.OnPublished();
  }
  if (!session.rank()) return;
  CHECK(ErrorOf(session.OnRequest(Request(await), offer)) == "AwaitArena before ReleaseArena");
  REQUIRE(std::holds_alternative<step::ReleaseArena>(session.OnRequest(Request(release), offer)));
  session.OnReleased();
  CHECK_FALSE(ErrorOf(session.OnRequest(Request(release), offer)).empty());
  CHECK_FALSE(ErrorOf(session.OnRequest(Request(GetSlabsRequest{.count = 1}), offer)).empty());
  REQUIRE(std::holds_alternative<step::AwaitArena>(session.OnRequest(Request(await), offer)));
  session.OnArenaDelivered();
  CHECK(std::holds_alternative<step::SendSlabs>(
      session.OnRequest(Request(GetSlabsRequest{.count = 1}), offer)));
  CHECK(std::holds_alternative<step::AwaitWeights>(
      session.OnRequest(Request(AwaitWeightsRequest{}), offer)));
  session.OnWeightsDelivered();
  CHECK_FALSE(ErrorOf(session.OnRequest(Request(await), offer)).empty());
  CHECK(std::holds_alternative<step::ReleaseArena>(session.OnRequest(Request(release), offer)));
}

TEST_CASE("Commands are no matter of a rank's connection") {
  EngineSession session;
  REQUIRE(std::holds_alternative<step::Welcome>(session.OnRequest(Hello(), kPulled)));
  for (const EngineRequest& request : std::initializer_list<EngineRequest>{
           AttachRequest{}, AwaitCommandRequest{}, CommandDoneRequest{}}) {
    CHECK(ErrorOf(session.OnRequest(Request(request), kPulled)).find("a connection of their own") !=
          std::string::npos);
  }
}

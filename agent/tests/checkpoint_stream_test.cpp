// A checkpoint read for the ranks of an engine: what they see of each other, and of what fails.

#include <sys/mman.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <map>
#include <thread>

#include "agent/server/checkpoint_stream.h"
#include "agent/tests/storage_fixture.h"

using namespace rouse;
using namespace rouse::agent;
using namespace std::chrono_literals;
using Catch::Contains;
using storage::test::Folder;
using storage::test::MakeShard;
using storage::test::TestTensor;

namespace {

constexpr std::size_t kTensorBytes = 20'000;

/// Two files of tensors t0, t1, ...; each one's bytes are its number, and one tensor holds nothing.
void WriteModel(const Folder& folder, int tensors = 40) {
  for (int file = 0; file < 2; ++file) {
    std::vector<TestTensor> held = {{"none" + std::to_string(file), "BF16", {0, 4}, ""}};
    for (int i = file; i < tensors; i += 2) {
      held.push_back({"t" + std::to_string(i), "U8", {kTensorBytes}, std::string(kTensorBytes, i)});
    }
    folder.Write("m" + std::to_string(file) + ".safetensors", MakeShard(held));
  }
}

std::vector<CheckpointFile> FilesOf(const Folder& folder) {
  std::vector<CheckpointFile> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    files.push_back({entry.path().filename(), entry.file_size()});
  }
  return files;
}

struct Fixture {
  explicit Fixture(std::chrono::milliseconds join_deadline = 20s) {
    WriteModel(folder);
    stream = std::make_unique<CheckpointStream>(
        CheckpointStreamOptions{.folder = folder.path().string() + "/",
                                .limits = {.min_slot_bytes = 32768, .slots = 3},
                                .join_deadline = join_deadline},
        CheckpointStreamHooks{.on_change = [this] { ++changes; },
                              .on_read =
                                  [this](const LoadOutcome& outcome) {
                                    const std::scoped_lock lock(mutex);
                                    outcomes.push_back(outcome);
                                  }});
  }

  LoadOutcome AwaitOutcome(std::size_t number = 0) {
    for (int i = 0; i < 2000; ++i) {
      {
        const std::scoped_lock lock(mutex);
        if (outcomes.size() > number) return outcomes[number];
      }
      std::this_thread::sleep_for(5ms);
    }
    FAIL("nothing was read");
    return {};
  }

  Folder folder;
  std::atomic<int> changes{0};
  std::mutex mutex;
  std::vector<LoadOutcome> outcomes;
  std::unique_ptr<CheckpointStream> stream;
};

/// One rank of an engine, which asks as the socket does: again until there is an answer.
class Rank {
 public:
  Rank(Fixture& fixture, std::uint32_t rank, std::uint32_t world_size = 1, std::uint32_t models = 1)
      : fixture_(fixture), stream_(*fixture.stream) {
    hello_.rank = rank;
    hello_.world_size = world_size;
    hello_.models = models;
    files = FilesOf(fixture.folder);
    folder = fixture.folder.path();
  }

  template <typename Ask>
  static auto Await(Ask ask) -> decltype(ask()) {
    for (int i = 0; i < 4000; ++i) {
      auto answer = ask();
      if (!answer.ok() || answer->has_value()) return answer;
      std::this_thread::sleep_for(5ms);
    }
    return DeadlineExceeded("no answer came");
  }

  Result<std::optional<OpenedStream>> AskOpen() {
    return stream_.Open(hello_,
                        {.rank = hello_.rank, .folder = folder, .files = files, .timeout_ms = 0});
  }
  Status Open() {
    auto opened = Await([&] { return AskOpen(); });
    if (!opened.ok()) return opened.status();
    shape = (*opened)->shape;
    slots = std::move((*opened)->slots);
    return {};
  }
  Result<std::optional<StreamedBatch>> AskNext(std::size_t batch, std::size_t released) {
    return stream_.Next(
        {.rank = hello_.rank, .batch = batch, .released = released, .timeout_ms = 0});
  }
  Result<std::optional<StreamedBatch>> Next(std::size_t batch, std::size_t released) {
    return Await([&] { return AskNext(batch, released); });
  }
  // For threads that are not the test's own: nothing is asserted here.
  Status Take(const StreamedBatch& batch) {
    void* const at =
        ::mmap(nullptr, shape.slot_bytes, PROT_READ, MAP_SHARED, slots[batch.slot].get(), 0);
    if (at == MAP_FAILED) return Internal("a slot cannot be mapped");
    for (const StreamedPiece& piece : batch.pieces) {
      if (piece.at + piece.bytes > shape.slot_bytes) return Internal("beyond the slot");
      contents[piece.name].append(static_cast<const char*>(at) + piece.at, piece.bytes);
    }
    ::munmap(at, shape.slot_bytes);
    return {};
  }
  /// All of it from batch `first` on; gives back each slot when it asks for the next.
  Status TakeAll(std::size_t first = 0) {
    for (std::size_t i = first; i <= shape.batches; ++i) {
      auto batch = Next(i, i);
      if (!batch.ok()) return batch.status();
      if ((*batch)->pieces.empty() != (i == shape.batches)) return Internal("another end");
      ROUSE_RETURN_IF_ERROR(Take(**batch));
    }
    return {};
  }
  void CheckContents(int tensors = 40) const {
    REQUIRE(contents.size() == static_cast<std::size_t>(tensors) + 2);
    for (int i = 0; i < tensors; ++i) {
      REQUIRE(contents.at("t" + std::to_string(i)) == std::string(kTensorBytes, i));
    }
    REQUIRE(contents.at("none0").empty());
  }
  void Close() { stream_.Close(hello_.rank); }
  void Leave() { stream_.Leave(hello_.rank); }
  bool delivered() const { return stream_.Delivered(hello_.rank); }

  std::string folder;
  std::vector<CheckpointFile> files;
  StreamShape shape;
  std::vector<memory::OwnedFd> slots;
  std::map<std::string, std::string> contents;

 private:
  Fixture& fixture_;
  CheckpointStream& stream_;
  HelloRequest hello_;
};

}  // namespace

TEST_CASE("One rank gets every tensor, and then the word that all was right") {
  Fixture fixture;
  Rank rank(fixture, 0);
  REQUIRE(rank.Open().ok());
  CHECK(rank.shape.slots == 3);
  CHECK(rank.slots.size() == 3);
  CHECK(rank.shape.tensors == 42);
  CHECK(rank.shape.bytes == 40 * kTensorBytes);
  CHECK(rank.shape.dtypes == std::vector<std::string>{"BF16", "U8"});
  CHECK(rank.shape.batches > 10);
  CHECK_FALSE(rank.delivered());
  REQUIRE(rank.TakeAll().ok());
  rank.CheckContents();
  CHECK(rank.delivered());
  rank.Close();
  CHECK(rank.delivered());
  const LoadOutcome outcome = fixture.AwaitOutcome();
  CHECK(outcome.status.ok());
  CHECK(outcome.bytes >= 40 * kTensorBytes);
  CHECK(outcome.bytes < 40 * kTensorBytes + rank.shape.batches * 3 * 4096);
  CHECK_FALSE(outcome.way.empty());
  CHECK(fixture.changes > 0);
  // Again, on the same connection or a new one: the files are read anew.
  rank.contents.clear();
  REQUIRE(rank.Open().ok());
  CHECK_FALSE(rank.delivered());
  REQUIRE(rank.TakeAll().ok());
  rank.CheckContents();
  rank.Leave();
  CHECK_FALSE(rank.delivered());
}

TEST_CASE("Ranks of a draft model load when those of the served one are through") {
  Fixture fixture;
  Rank first(fixture, 0, 4, 2), second(fixture, 1, 4, 2);
  Rank first_draft(fixture, 2, 4, 2), second_draft(fixture, 3, 4, 2);
  REQUIRE(first.Open().ok());
  REQUIRE(second.Open().ok());
  Status taken;
  {
    std::jthread other([&] { taken = first.TakeAll(); });
    CHECK(second.TakeAll().ok());
  }
  CHECK(taken.ok());
  first.Close();
  REQUIRE_FALSE(first_draft.AskOpen()->has_value());  // The second one might still read.
  second.CheckContents();
  second.Close();
  REQUIRE(first_draft.Open().ok());
  REQUIRE(second_draft.Open().ok());
  {
    std::jthread other([&] { taken = first_draft.TakeAll(); });
    CHECK(second_draft.TakeAll().ok());
  }
  CHECK(taken.ok());
  first_draft.CheckContents();
  second_draft.CheckContents();
}

TEST_CASE("Ranks that load together read the files once, none gets ahead by more than the slots") {
  Fixture fixture;
  Rank first(fixture, 0, 2), second(fixture, 1, 2);
  REQUIRE(first.Open().ok());
  REQUIRE_FALSE(first.AskNext(0, 0)->has_value());  // The other one has not asked yet.
  REQUIRE(second.Open().ok());
  for (std::size_t i = 0; i < 3; ++i) {
    auto batch = first.Next(i, i);
    REQUIRE(batch.ok());
    REQUIRE(first.Take(**batch).ok());
  }
  std::this_thread::sleep_for(100ms);
  REQUIRE_FALSE(first.AskNext(3, 3)->has_value());
  Status taken;
  std::jthread other([&] { taken = second.TakeAll(); });
  CHECK(first.TakeAll(3).ok());
  other.join();
  CHECK(taken.ok());
  first.CheckContents();
  second.CheckContents();
  CHECK(first.delivered());
  CHECK(second.delivered());
  const LoadOutcome outcome = fixture.AwaitOutcome();
  CHECK(outcome.bytes < 41 * kTensorBytes + first.shape.batches * 3 * 4096);
}

TEST_CASE("A rank that goes away holds up nobody, and the last one ends the reading") {
  Fixture fixture;
  Rank first(fixture, 0, 2), second(fixture, 1, 2);
  REQUIRE(first.Open().ok());
  REQUIRE(second.Open().ok());
  REQUIRE(second.Next(0, 0).ok());
  SECTION("one of two") {
    second.Leave();
    CHECK(first.TakeAll().ok());
    first.CheckContents();
    CHECK(second.AskNext(1, 0).status().code() == StatusCode::kFailedPrecondition);
  }
  SECTION("both, and then they come again") {
    second.Leave();
    first.Leave();
    const LoadOutcome outcome = fixture.AwaitOutcome();
    CHECK(outcome.status.code() == StatusCode::kCancelled);
    CHECK(outcome.bytes > 0);
    CHECK(outcome.bytes < 20 * kTensorBytes);
    REQUIRE(second.Open().ok());
    REQUIRE(first.Open().ok());
    Status taken;
    std::jthread other([&] { taken = second.TakeAll(); });
    CHECK(first.TakeAll().ok());
    other.join();
    CHECK(taken.ok());
    first.CheckContents();
  }
}

TEST_CASE("A rank that never asks sends the others to load by themselves") {
  Fixture fixture(100ms);
  Rank first(fixture, 0, 2);
  REQUIRE(first.Open().ok());
  const auto batch = first.Next(0, 0);
  CHECK(batch.status().code() == StatusCode::kDeadlineExceeded);
  CHECK_THAT(batch.status().message(), Contains("1 other ranks have not asked"));
  CHECK(fixture.AwaitOutcome().status.code() == StatusCode::kDeadlineExceeded);
  CHECK_FALSE(first.delivered());
}

TEST_CASE("Acknowledgements that make no sense are refused and change nothing") {
  Fixture fixture;
  Rank rank(fixture, 0);
  CHECK(rank.AskNext(0, 0).status().code() == StatusCode::kFailedPrecondition);
  REQUIRE(rank.Open().ok());
  REQUIRE(rank.Next(0, 0).ok());
  REQUIRE(rank.Next(1, 0).ok());
  for (const auto& [batch, released] : {std::pair<std::size_t, std::size_t>{0, 0},
                                        {1, 0},
                                        {3, 0},
                                        {1u << 29, 0},
                                        {2, 3},
                                        {2, 1u << 29}}) {
    CHECK(rank.AskNext(batch, released).status().code() == StatusCode::kInvalidArgument);
  }
  REQUIRE(rank.Next(2, 1).ok());
  CHECK_THAT(rank.AskNext(3, 0).status().message(), Contains("released: is 0, expected 1 to 3"));
  CHECK(rank.TakeAll(3).ok());
}

TEST_CASE("A checkpoint that the engine sees in another way is refused, with what differs") {
  Fixture fixture;
  Rank rank(fixture, 0);
  SECTION("another folder") {
    rank.folder = "/rouse/model";
    CHECK_THAT(rank.Open().message(), Contains("loads from /rouse/model, the agent's"));
  }
  SECTION("another size") {
    rank.files.front().bytes += 1;
    CHECK_THAT(rank.Open().message(), Contains("the engine has \"m") && Contains("the agent has"));
  }
  SECTION("a file more") {
    rank.files.push_back({"m2.safetensors", 5});
    CHECK_THAT(rank.Open().message(), Contains("m2.safetensors") && Contains("has no more"));
  }
  SECTION("a name that leads out of the folder") {
    rank.files.front().name = "../../etc/passwd";
    CHECK_FALSE(rank.Open().ok());
  }
  SECTION("a file that is no checkpoint") {
    fixture.folder.Write("m1.safetensors", "nonsense that is long enough");
    rank.files = FilesOf(fixture.folder);
    CHECK_THAT(rank.Open().message(), Contains("m1.safetensors"));
    CHECK(fixture.AwaitOutcome().bytes == 0);
  }
  // It may well fit the next time.
  WriteModel(fixture.folder);
  Rank good(fixture, 0);
  REQUIRE(good.Open().ok());
  CHECK(good.TakeAll().ok());
}

TEST_CASE("A file that is cut off while it is read ends the load with its name") {
  Fixture fixture;
  Rank rank(fixture, 0);
  REQUIRE(rank.Open().ok());
  REQUIRE(rank.Next(0, 0).ok());
  std::filesystem::resize_file(fixture.folder.path() / "m1.safetensors", 100'000);
  const Status status = rank.TakeAll(1);
  CHECK(status.code() == StatusCode::kDataLoss);
  CHECK_THAT(status.message(), Contains("m1.safetensors"));
  CHECK_FALSE(rank.delivered());
  CHECK(fixture.AwaitOutcome().status.code() == StatusCode::kDataLoss);
}

TEST_CASE("A file that is changed behind the reader's back is noticed at the end") {
  Fixture fixture;
  Rank rank(fixture, 0);
  REQUIRE(rank.Open().ok());
  REQUIRE(rank.Next(0, 0).ok());
  std::filesystem::last_write_time(fixture.folder.path() / "m0.safetensors",
                                   std::filesystem::file_time_type::clock::now() + 1h);
  std::size_t batch = 1;
  while (batch < rank.shape.batches && rank.Next(batch, batch).ok()) ++batch;
  CHECK_THAT(rank.Next(batch, batch).status().message(), Contains("m0.safetensors: changed"));
  CHECK_FALSE(rank.delivered());
}

TEST_CASE("An end in the middle of a load waits for nobody") {
  Fixture fixture;
  Rank rank(fixture, 0);
  REQUIRE(rank.Open().ok());
  REQUIRE(rank.Next(0, 0).ok());
  fixture.stream->End();
  CHECK_FALSE(rank.AskNext(1, 0).ok());
  CHECK(fixture.AwaitOutcome().status.code() == StatusCode::kCancelled);
}

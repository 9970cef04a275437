// Commands to the engine: their decoding, one core's conversation, the round over all cores.

#include <catch2/catch.hpp>

#include "agent/engine/command_book.h"
#include "agent/engine/command_session.h"
#include "agent/tests/engine_steps.h"

using namespace rouse;
using namespace rouse::agent;
using namespace std::chrono_literals;

namespace {

AttachRequest Core(std::uint32_t core, std::uint32_t cores) {
  return {.pid = 1, .engine = "vllm", .engine_version = "1", .core = core, .cores = cores};
}

CommandDoneRequest Did(std::int64_t id, CommandValues values = {}) {
  return {.id = id, .values = std::move(values), .error = ""};
}

}  // namespace

TEST_CASE("Requests about sleep and commands are decoded") {
  const auto attach = DecodeEngineRequest(
      R"({"type":"Attach","protocol":"rouse-engine","version":1,"pid":7,"engine":"vllm",)"
      R"("engineVersion":"0.26.0","core":1,"cores":2})",
      0);
  REQUIRE(attach.ok());
  CHECK(std::get<AttachRequest>(*attach).core == 1);
  CHECK(std::get<AttachRequest>(*attach).cores == 2);
  CHECK(TypeName(*attach) == "Attach");
  const auto await = DecodeEngineRequest(R"({"type":"AwaitCommand","timeoutMs":9})", 0);
  CHECK(std::get<AwaitCommandRequest>(*await).timeout_ms == 9);
  const auto done = DecodeEngineRequest(
      R"({"type":"CommandDone","id":3,"ok":true,"values":{"gpuUsedBytes":5,"seconds":0.25}})", 0);
  REQUIRE(done.ok());
  CHECK(std::get<CommandDoneRequest>(*done).values ==
        CommandValues{{"gpuUsedBytes", 5}, {"seconds", 0.25}});
  CHECK(std::get<CommandDoneRequest>(*done).error.empty());
  const auto failed =
      DecodeEngineRequest(R"({"type":"CommandDone","id":3,"ok":false,"error":"no memory"})", 0);
  CHECK(std::get<CommandDoneRequest>(*failed).error == "no memory");
  const auto release = DecodeEngineRequest(R"({"type":"ReleaseArena","rank":2})", 0);
  CHECK(std::get<ReleaseArenaRequest>(*release).rank == 2);
  const auto arena = DecodeEngineRequest(R"({"type":"AwaitArena","rank":2,"timeoutMs":7})", 0);
  CHECK(std::get<AwaitArenaRequest>(*arena).timeout_ms == 7);
  CHECK(TypeName(*arena) == "AwaitArena");
}

TEST_CASE("What is wrong with a request about sleep or commands is named") {
  const std::string attach =
      R"({"type":"Attach","protocol":"rouse-engine","version":1,"pid":7,"engine":"v",)";
  std::string many = R"({"type":"CommandDone","id":1,"ok":true,"values":{"x":0)";
  for (int i = 0; i < 40; ++i) many += ",\"v" + std::to_string(i) + "\":1";
  const std::pair<std::string, std::string> cases[] = {
      {attach + R"("engineVersion":"1","core":2,"cores":2})", "core: 2 is not below cores 2"},
      {attach + R"("engineVersion":"1","core":0,"cores":0})", "cores"},
      {attach + R"("engineVersion":"1","core":0,"cores":5000})", "cores"},
      {attach + R"("engineVersion":"1","core":0,"cores":1,"rank":0})", "rank: is not known here"},
      {attach + R"("core":0,"cores":1})", "engineVersion"},
      {R"({"type":"Attach","protocol":"rouse-engine","version":2})", "speaks rouse-engine 2"},
      {R"({"type":"AwaitCommand"})", "timeoutMs"},
      {R"({"type":"AwaitCommand","timeoutMs":-1})", "timeoutMs"},
      {R"({"type":"AwaitCommand","timeoutMs":1,"more":1})", "more: is not known here"},
      {R"({"type":"CommandDone","id":0,"ok":true,"values":{}})", "id"},
      {R"({"type":"CommandDone","id":1,"ok":1,"values":{}})", "ok"},
      {R"({"type":"CommandDone","id":1,"ok":true})", "values"},
      {R"({"type":"CommandDone","id":1,"ok":true,"values":{"x":"y"}})", "values.x"},
      {R"({"type":"CommandDone","id":1,"ok":true,"values":{"x":-1}})", "values.x: is negative"},
      {R"({"type":"CommandDone","id":1,"ok":true,"values":{"x":1e999}})", "engine request"},
      {R"({"type":"CommandDone","id":1,"ok":true,"values":{")" + std::string(65, 'x') + R"(":1}})",
       "values: has a name of 65 bytes"},
      {many + "}}", "values: has more than 32"},
      {R"({"type":"CommandDone","id":1,"ok":true,"values":{},"error":"x"})", "error"},
      {R"({"type":"CommandDone","id":1,"ok":false,"error":""})", "error: is empty"},
      {R"({"type":"CommandDone","id":1,"ok":false})", "error"},
      {R"({"type":"CommandDone","id":1,"ok":false,"error":"x","values":{}})", "values"},
      {R"({"type":"ReleaseArena"})", "rank"},
      {R"({"type":"ReleaseArena","rank":0,"bytes":1})", "bytes: is not known here"},
      {R"({"type":"AwaitArena","rank":0})", "timeoutMs"},
      {R"({"type":"AwaitArena","rank":99999,"timeoutMs":0})", "rank"}};
  for (const auto& [text, said] : cases) {
    INFO(text);
    const auto request = DecodeEngineRequest(text, 0);
    REQUIRE_FALSE(request.ok());
    INFO(request.status().message());
    CHECK(request.status().message().find(said) != std::string::npos);
  }
  const auto with_fd = DecodeEngineRequest(R"({"type":"AwaitCommand","timeoutMs":1})", 1);
  CHECK(with_fd.status().message().find("came with 1 descriptors") != std::string::npos);
}

TEST_CASE("Commands are written as the engine reads them") {
  CHECK(CommandReply({.id = 4, .kind = CommandKind::kSleep, .limit = 30s}) ==
        json::Json{{"type", "Command"}, {"id", 4}, {"command", "Sleep"}, {"drainMs", 30'000}});
  CHECK(CommandReply({.id = 5, .kind = CommandKind::kWake}) ==
        json::Json{{"type", "Command"}, {"id", 5}, {"command", "Wake"}});
  CHECK(
      CommandReply({.id = 6, .kind = CommandKind::kCaptureGraphs, .limit = 250ms}) ==
      json::Json{{"type", "Command"}, {"id", 6}, {"command", "CaptureGraphs"}, {"budgetMs", 250}});
}

TEST_CASE("A core attaches, takes one command at a time and says what became of it") {
  CommandSession session;
  CHECK(ErrorOf(session.OnRequest(Request(AwaitCommandRequest{}))).find("before Attach") !=
        std::string::npos);
  CHECK(std::get<step::Reply>(session.OnRequest(Request(AwaitCommandRequest{}))).close);
  REQUIRE(std::holds_alternative<step::Attach>(session.OnRequest(Request(Core(0, 1)))));
  CHECK(session.attached());
  CHECK(ErrorOf(session.OnRequest(Request(Core(0, 1)))).find("twice") != std::string::npos);
  CHECK(ErrorOf(session.OnRequest(Request(Did(1)))).find("no command is under way") !=
        std::string::npos);
  REQUIRE(std::holds_alternative<step::AwaitCommand>(
      session.OnRequest(Request(AwaitCommandRequest{}))));
  session.OnCommandSent(7);
  CHECK(ErrorOf(session.OnRequest(Request(AwaitCommandRequest{})))
            .find("before CommandDone of command 7") != std::string::npos);
  CHECK(ErrorOf(session.OnRequest(Request(Did(6)))).find("id: command 7") != std::string::npos);
  REQUIRE(std::holds_alternative<step::FinishCommand>(session.OnRequest(Request(Did(7)))));
  CHECK(std::holds_alternative<step::AwaitCommand>(
      session.OnRequest(Request(AwaitCommandRequest{}))));
  CHECK(ErrorOf(session.OnRequest(Request(HelloRequest{}))).find("connections of their own") !=
        std::string::npos);
  CHECK(ErrorOf(session.OnRequest(Request(ReleaseArenaRequest{}))).find("ReleaseArena") !=
        std::string::npos);
  bool closed = false;
  for (int i = 0; i < kMaxSessionErrors && !closed; ++i) {
    closed = std::get<step::Reply>(session.OnRequest(InvalidArgument("nonsense"))).close;
  }
  CHECK(closed);
}

TEST_CASE("A command goes to every core once and is done when the last one has done it") {
  CommandBook book;
  CHECK(book.Begin(CommandKind::kSleep, 1s).status().message().find("has not attached") !=
        std::string::npos);
  const auto first = book.Attach(Core(0, 2));
  CHECK(book.Begin(CommandKind::kSleep, 1s).status().message().find("1 of 2") != std::string::npos);
  const auto second = book.Attach(Core(1, 2));
  CHECK(book.Ready().ok());
  CHECK_FALSE(book.Next(first).has_value());
  const auto command = book.Begin(CommandKind::kSleep, 1s);
  REQUIRE(command.ok());
  CHECK(book.Begin(CommandKind::kWake, 0s).status().code() == StatusCode::kFailedPrecondition);
  CHECK(book.Next(first) == *command);
  CHECK_FALSE(book.Next(first).has_value());
  book.Done(first, Did(command->id, {{"kvBytes", 10}, {"seconds", 0.5}, {"mapSeconds", 0.1}}));
  CHECK_FALSE(book.TakeOutcome().has_value());
  CHECK(book.Next(second) == *command);
  book.Done(second, Did(command->id, {{"kvBytes", 20}, {"seconds", 0.25}, {"mapSeconds", 0.2}}));
  const auto outcome = book.TakeOutcome();
  REQUIRE(outcome.has_value());
  CHECK(outcome->status.ok());
  CHECK(outcome->values == CommandValues{{"kvBytes", 30}, {"seconds", 0.5}, {"mapSeconds", 0.2}});
  CHECK_FALSE(book.busy());
  const auto next = book.Begin(CommandKind::kWake, 0s);
  REQUIRE(next.ok());
  CHECK(next->id > command->id);
}

TEST_CASE("A command fails by one core that says no, ends, is replaced, or by nobody's patience") {
  CommandBook book;
  const auto first = book.Attach(Core(0, 2));
  const auto second = book.Attach(Core(1, 2));
  const auto command = book.Begin(CommandKind::kWake, 0s);
  REQUIRE(command.ok());
  REQUIRE(book.Next(first).has_value());
  SECTION("it says no") {
    book.Done(first, {.id = command->id, .values = {}, .error = "out of memory"});
    const auto outcome = book.TakeOutcome();
    REQUIRE(outcome.has_value());
    CHECK(outcome->status.message() == "command Wake: engine core 0: out of memory");
    CHECK_FALSE(book.Next(second).has_value());
  }
  SECTION("it ends") {
    book.Leave(first);
    CHECK(book.TakeOutcome()->status.message().find("engine core 0 has ended") !=
          std::string::npos);
    CHECK(book.Begin(CommandKind::kWake, 0s).status().code() == StatusCode::kUnavailable);
  }
  SECTION("it ends after it was done") {
    book.Done(first, Did(command->id));
    book.Leave(first);
    CHECK_FALSE(book.TakeOutcome().has_value());
    REQUIRE(book.Next(second).has_value());
    book.Done(second, Did(command->id));
    CHECK(book.TakeOutcome()->status.ok());
  }
  SECTION("its engine was started again") {
    const auto again = book.Attach(Core(0, 1));
    CHECK_FALSE(book.TakeOutcome()->status.ok());
    CHECK_FALSE(book.Next(again).has_value());
    const auto next = book.Begin(CommandKind::kSleep, 0s);
    REQUIRE(next.ok());
    CHECK_FALSE(book.Next(first).has_value());
    CHECK_FALSE(book.Next(second).has_value());
    CHECK(book.Next(again) == *next);
    book.Leave(first);  // Its connection ends only now.
    CHECK(book.busy());
  }
  SECTION("it takes too long, and is done after all") {
    book.Abandon(DeadlineExceeded("60 s are over"));
    CHECK(book.TakeOutcome()->status.code() == StatusCode::kDeadlineExceeded);
    const auto next = book.Begin(CommandKind::kSleep, 0s);
    REQUIRE(next.ok());
    book.Done(first, Did(command->id));
    CHECK_FALSE(book.TakeOutcome().has_value());
    CHECK(book.Next(first) == *next);
  }
}

#include "agent/engine/command_book.h"
#include "agent/engine/command_session.h"
#include "agent/engine/protocol.h"
#include "agent/engine/session.h"
#include "agent/tests/fuzz/harness.h"

namespace rouse::fuzz {
namespace {

using namespace agent;

// Letters of the first line: p = weights that have come, s = storage is allowed, u = not settled;
// f = the shell fails to perform what the session asks for; c = there is always a command for a
// core.
WeightOffer Offer(std::string_view letters) {
  const auto has = [&](char letter) { return letters.find(letter) != std::string_view::npos; };
  WeightOffer offer{.reason = "fuzz", .storage_allowed = has('s'), .settled = !has('u')};
  if (has('p')) offer.identity = Identity{{"model", "m"}, {"dtype", "bfloat16"}};
  return offer;
}

// What a shell would have to keep to, and what the session promises it.
class Shell {
 public:
  explicit Shell(std::string_view letters)
      : offer_(Offer(letters)),
        fails_(letters.find('f') != std::string_view::npos),
        commands_(letters.find('c') != std::string_view::npos) {}

  bool closed() const { return closed_; }

  void OnMessage(std::string_view text, std::size_t fds) {
    const auto request = DecodeEngineRequest(text, fds);
    if (!request.ok()) {
      Check(!request.status().message().empty(), "an error says what is wrong");
    }
    if (!core_ && !session_.rank() && request.ok() &&
        std::holds_alternative<AttachRequest>(*request)) {
      core_.emplace();
    }
    if (core_) return OnCoresMessage(request);
    const bool knew = session_.rank().has_value();
    const EngineStep step = session_.OnRequest(request, offer_);
    if (!request.ok()) {
      Check(std::holds_alternative<step::Reply>(step), "what is malformed is answered");
    }
    std::visit([&](const auto& one) { Perform(one, knew); }, step);
    if (session_.rank()) {
      Check(*session_.rank() < session_.hello()->world_size, "a rank is below the world's size");
    }
  }

 private:
  void OnCoresMessage(const Result<EngineRequest>& request) {
    const bool knew = core_->attached();
    const CommandStep step = core_->OnRequest(request);
    if (!request.ok()) {
      Check(std::holds_alternative<step::Reply>(step), "what is malformed is answered");
    }
    if (const auto* reply = std::get_if<step::Reply>(&step)) {
      Perform(*reply, knew);
    } else if (const auto* attach = std::get_if<step::Attach>(&step)) {
      Check(!knew && core_->attached(), "a core attaches once");
      Check(attach->request.core < attach->request.cores, "a core is below their number");
      token_ = book_.Attach(attach->request);
    } else if (std::holds_alternative<step::AwaitCommand>(step)) {
      Check(knew && !under_way_, "one command at a time");
      if (commands_ && !book_.busy()) {
        static_cast<void>(book_.Begin(CommandKind::kSleep, std::chrono::seconds(1)).ok());
      }
      const auto command = book_.Next(token_);
      if (!command) return;
      core_->OnCommandSent(command->id);
      under_way_ = command->id;
    } else {
      const CommandDoneRequest& done = std::get<step::FinishCommand>(step).request;
      Check(knew && under_way_ == done.id, "what is done was under way");
      Check(done.values.size() <= kMaxCommandValues, "figures are few");
      Check(done.error.size() <= kMaxCommandError, "a reason is bounded");
      Check(done.error.empty() || done.values.empty(), "a failure has no figures");
      book_.Done(token_, done);
      under_way_.reset();
      const auto outcome = book_.TakeOutcome();
      Check(!outcome || outcome->status.ok() == done.error.empty(), "a core's word decides");
    }
  }

  void Perform(const step::Reply& reply, bool) {
    Check(json::Dump(reply.body).size() <= 128 * 1024, "an answer fits a message");
    Check(reply.body.contains("type"), "an answer has a type");
    closed_ = reply.close;
  }
  void Perform(const step::Welcome& welcome, bool knew) {
    Check(!knew, "a rank says hello once");
    Check(session_.rank() == welcome.hello.rank, "a welcomed rank is known");
    const bool from_peer = welcome.from == WeightsFrom::kPeer;
    Check(!from_peer || offer_.identity == welcome.hello.identity,
          "weights go to an equal identity only");
    Check(from_peer || offer_.storage_allowed, "storage only where it is allowed");
    Check(welcome.from != WeightsFrom::kNowhere || offer_.begin_without, "nobody is left without");
    from_peer_ = from_peer;
    Check(json::Dump(welcome.welcome).size() <= 128 * 1024, "an answer fits a message");
  }
  void Perform(const step::Refuse& refuse, bool knew) {
    Check(!knew && !session_.rank(), "a refused rank stays unknown");
    Check(!refuse.reason.empty(), "a refusal has a reason");
  }
  void Perform(const step::RecordPhase&, bool knew) { Check(knew, "phases come after Hello"); }
  void Perform(const step::AwaitWeights& await, bool knew) {
    Check(knew && from_peer_, "weights are for who was promised them");
    Check(await.request.rank == session_.rank(), "of its own rank");
    if (fails_) return;
    session_.OnWeightsDelivered();
    holds_ = true;
    released_ = false;
  }
  void Perform(const step::CreateArena& create, bool knew) {
    Check(knew && offer_.storage_allowed, "an arena is made where storage is allowed");
    Check(create.request.rank == session_.rank(), "of its own rank");
    Check(create.request.bytes > 0, "an arena has bytes");
    if (fails_) return;
    session_.OnArenaCreated();
    holds_ = may_publish_ = true;
    released_ = false;
  }
  void Perform(const step::SendSlabs& send, bool knew) {
    Check(knew && holds_, "slabs go to who holds an arena");
    Check(send.request.rank == session_.rank(), "of its own rank");
  }
  void Perform(const step::Publish& publish, bool knew) {
    Check(knew && may_publish_, "only an arena of its own is published, and once");
    Check(publish.request.manifest_bytes > 0, "a manifest has bytes");
    if (fails_) return;
    session_.OnPublished();
    may_publish_ = false;
  }
  void Perform(const step::OpenStream& open, bool knew) {
    Check(knew && offer_.storage_allowed, "checkpoints are read where storage is allowed");
    Check(!streams_, "one stream at a time");
    Check(open.request.rank == session_.rank(), "of its own rank");
    Check(!open.request.files.empty(), "a checkpoint has files");
    if (fails_) return;
    session_.OnStreamOpened();
    streams_ = true;
  }
  void Perform(const step::NextBatch& next, bool knew) {
    Check(knew && streams_, "batches go to who has opened a stream");
    Check(next.request.rank == session_.rank(), "of its own rank");
  }
  void Perform(const step::CloseStream& close, bool knew) {
    Check(knew && streams_, "an open stream is closed");
    Check(close.request.reason.size() <= kMaxStreamReason, "a reason is bounded");
    session_.OnStreamClosed();
    streams_ = false;
  }

  void Perform(const step::ReleaseArena& release, bool knew) {
    Check(knew && holds_ && !may_publish_, "only weights that are done are given up");
    Check(release.request.rank == session_.rank(), "of its own rank");
    if (fails_) return;
    session_.OnReleased();
    holds_ = false;
    released_ = true;
  }
  void Perform(const step::AwaitArena& await, bool knew) {
    Check(knew && released_, "the next arena is for who gave its own up");
    Check(await.request.rank == session_.rank(), "of its own rank");
    if (fails_) return;
    session_.OnArenaDelivered();
    holds_ = from_peer_ = true;
  }

  void Perform(const step::NoteCacheUse& note, bool) {
    Check(note.request.lookups.size() <= kMaxCacheLookups, "a report has an end");
    for (const CacheLookup& lookup : note.request.lookups) {
      Check(!lookup.cache.empty() && lookup.factors.size() <= kMaxCacheFactors, "bounds hold");
    }
  }
  void Perform(const step::TellHeld& tell, bool) {
    Check(tell.request.gpu.size() <= kMaxGpuName, "a GPU's name is bounded");
  }

  WeightOffer offer_;
  bool fails_;
  bool commands_;
  EngineSession session_;
  std::optional<CommandSession> core_;
  CommandBook book_;
  CommandBook::Core token_ = 0;
  std::optional<std::int64_t> under_way_;
  bool released_ = false;
  bool from_peer_ = false;
  bool holds_ = false;
  bool may_publish_ = false;
  bool streams_ = false;
  bool closed_ = false;
};

}  // namespace

void EngineSocket(std::string_view input) {
  Shell shell(NextLine(input));
  while (!input.empty() && !shell.closed()) {
    std::string_view line = NextLine(input);
    std::size_t fds = 0;
    if (!line.empty() && line[0] >= '0' && line[0] <= '9') {
      fds = static_cast<std::size_t>(line[0] - '0');
      line.remove_prefix(1);
    }
    shell.OnMessage(line, fds);
  }
}

}  // namespace rouse::fuzz

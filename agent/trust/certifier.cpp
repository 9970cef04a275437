#include "agent/trust/certifier.h"

#include <pthread.h>

#include <algorithm>
#include <fstream>

#include "common/log.h"
#include "common/tls/x509.h"

namespace rouse::agent {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kTimeout{5'000};
/// How often the files are looked at.
constexpr milliseconds kPoll{2'000};
constexpr std::size_t kMaxBundle = 256u << 10;

Result<std::string> ReadSmall(const std::string& path, std::size_t max_bytes) {
  std::ifstream file(path, std::ios::binary);
  std::string text(max_bytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.eof() && !file) return Unavailable("read " + path + ": is it mounted?");
  text.resize(static_cast<std::size_t>(file.gcount()));
  if (text.size() > max_bytes) return InvalidArgument(path + " is too large");
  if (text.empty()) return Unavailable(path + " is not there, or empty");
  return text;
}

}  // namespace

milliseconds AskAgain(int failures, double jitter) {
  const double longest =
      std::min(100.0 * static_cast<double>(1 << std::min(failures, 10)), 15'000.0);
  return milliseconds(static_cast<std::int64_t>(longest * (0.5 + 0.5 * jitter)));
}

Result<std::unique_ptr<Certifier>> Certifier::Start(CertifierOptions options,
                                                    CertifierHooks hooks) {
  std::unique_ptr<Certifier> made(new Certifier(std::move(options), std::move(hooks)));
  ROUSE_ASSIGN_OR_RETURN(
      made->client_,
      http::Client::Create(made->options_.operator_url,
                           http::MutualTls{.credentials = made->asker_, .peer = tls::Operator()}));
  made->thread_ = std::jthread([raw = made.get()](const std::stop_token& stop) {
    pthread_setname_np(pthread_self(), "certificate");
    raw->Run(stop);
  });
  return made;
}

Certifier::Certifier(CertifierOptions options, CertifierHooks hooks)
    : options_(std::move(options)), hooks_(std::move(hooks)) {}

Certifier::~Certifier() = default;

void Certifier::Await(const std::stop_token& stop) const {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, stop, [this] { return waiting_for_.empty(); });
}

std::string Certifier::waiting_for() const {
  const std::lock_guard lock(mutex_);
  return waiting_for_;
}

void Certifier::Run(const std::stop_token& stop) {
  std::uniform_real_distribution<double> jitter(0.0, 1.0);
  int failures = 0;
  std::string last_error;
  while (!stop.stop_requested()) {
    const Status done = Step();
    if (!done.ok() && done.message() != last_error) {
      log::Warning("no new certificate, trying again", {{"error", done.ToString()}});
    }
    last_error = done.message();
    failures = done.ok() ? 0 : failures + 1;
    std::unique_lock lock(mutex_);
    if (!certificate_.empty()) {
      waiting_for_.clear();
    } else {
      waiting_for_ = done.message();
    }
    changed_.notify_all();
    const milliseconds wait = done.ok() ? kPoll : AskAgain(failures, jitter(random_));
    changed_.wait_for(lock, stop, wait, [] { return false; });
  }
}

Status Certifier::Step() {
  ROUSE_ASSIGN_OR_RETURN(const std::string bundle, ReadSmall(options_.ca_file, kMaxBundle));
  const auto current = credentials_->Get();
  if (current != nullptr && current->trusted != bundle) Keep(bundle);
  // Authorities that were made anew at once know nothing of what was signed before.
  const bool good = !certificate_.empty() && tls::CheckCertificate(bundle, certificate_).ok();
  if (good && Clock::now() < renew_at_) return {};
  return Ask(bundle);
}

Status Certifier::Ask(const std::string& bundle) {
  if (const auto asker = asker_->Get(); asker == nullptr || asker->trusted != bundle) {
    asker_->Set({.trusted = bundle, .certificate = "", .key = ""});
  }
  ROUSE_ASSIGN_OR_RETURN(std::string token, ReadSmall(options_.token_file, kMaxTokenBytes));
  while (token.ends_with('\n')) token.pop_back();
  ROUSE_ASSIGN_OR_RETURN(const tls::Key key, tls::Key::Generate());
  ROUSE_ASSIGN_OR_RETURN(const std::string csr, tls::MakeRequest(key));
  const auto began = Clock::now();
  const auto answer =
      client_->Send({.method = "POST",
                     .target = "/v1/certificates",
                     .headers = {{"Content-Type", "application/json"}},
                     .body = json::Dump(ToJson(CertificateRequest{.csr = csr, .token = token})),
                     .timeout = kTimeout,
                     .deadline = kTimeout},
                    64u << 10);
  hooks_.on_asked(answer.ok() && answer->status == 200);
  if (!answer.ok()) return answer.status();
  if (answer->status != 200) return http::ToStatus(*answer, "ask the operator for a certificate");
  ROUSE_ASSIGN_OR_RETURN(const json::Json document, json::Parse(answer->body, "certificate"));
  ROUSE_ASSIGN_OR_RETURN(const CertificateAnswer given, CertificateAnswerFromJson(document));
  ROUSE_ASSIGN_OR_RETURN(const tls::Certificate certificate,
                         tls::Certificate::FromPem(given.certificate));
  ROUSE_ASSIGN_OR_RETURN(const tls::Identity named, certificate.identity());
  if (!tls::Matches(options_.self, named)) {
    return FailedPrecondition("the certificate is for " + tls::Describe(named) +
                              ", this agent is of another pod");
  }
  if (const Status good = tls::CheckCertificate(bundle, given.certificate); !good.ok()) {
    return good.WithContext("the certificate from the operator (is this node's clock right?)");
  }
  ROUSE_ASSIGN_OR_RETURN(key_, key.ToPem());
  certificate_ = given.certificate;
  std::uniform_real_distribution<double> early(0.9, 1.0);  // Not all of a rollout at once.
  renew_at_ =
      began + std::chrono::duration_cast<Clock::duration>(given.renew_after * early(random_));
  Keep(bundle);
  hooks_.on_certificate(certificate.validity().not_after);
  log::Info(
      "certificate from the operator",
      {{"milliseconds", std::chrono::duration_cast<milliseconds>(Clock::now() - began).count()},
       {"renewAfterSeconds",
        std::chrono::duration_cast<std::chrono::seconds>(given.renew_after).count()}});
  return {};
}

void Certifier::Keep(const std::string& bundle) {
  credentials_->Set({.trusted = bundle, .certificate = certificate_, .key = key_});
}

}  // namespace rouse::agent

#include "common/tls/x509.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <array>
#include <cstring>
#include <ctime>

namespace rouse::tls {
namespace {

template <auto Free>
struct Freer {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};
using Bio = std::unique_ptr<BIO, Freer<&BIO_free_all>>;
using Request = std::unique_ptr<X509_REQ, Freer<&X509_REQ_free>>;
using Extension = std::unique_ptr<X509_EXTENSION, Freer<&X509_EXTENSION_free>>;
using BigNumber = std::unique_ptr<BIGNUM, Freer<&BN_free>>;
using GeneralNames = std::unique_ptr<GENERAL_NAMES, Freer<&GENERAL_NAMES_free>>;

// What OpenSSL says of the last failure on this thread, and forgets by that.
Status Failed(StatusCode code, const std::string& what) {
  std::array<char, 256> text{};
  const unsigned long error = ERR_peek_last_error();
  if (error != 0) ERR_error_string_n(error, text.data(), text.size());
  ERR_clear_error();
  return Status(code, what + (text[0] == 0 ? "" : std::string(": ") + text.data()));
}

Bio ReadFrom(std::string_view text) {
  return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

std::string TextOf(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return std::string(data, static_cast<std::size_t>(size));
}

bool IsP256(EVP_PKEY* key) {
  std::array<char, 64> group{};
  return EVP_PKEY_is_a(key, "EC") == 1 &&
         EVP_PKEY_get_group_name(key, group.data(), group.size(), nullptr) == 1 &&
         std::string_view(group.data()) == "prime256v1";
}

// No key is asked for on a terminal.
int NoPassword(char*, int, int, void*) {
  return -1;
}

std::shared_ptr<X509> Own(X509* certificate) {
  return {certificate, [](X509* x) { X509_free(x); }};
}

Status Add(X509* certificate, X509* issuer, int nid, const char* value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const Extension extension(X509V3_EXT_conf_nid(nullptr, &context, nid, value));
  if (!extension || X509_add_ext(certificate, extension.get(), -1) != 1) {
    return Failed(StatusCode::kInternal, std::string("extension ") + OBJ_nid2sn(nid));
  }
  return {};
}

Status Push(GENERAL_NAMES* names, int type, ASN1_STRING* value) {
  GENERAL_NAME* const name = GENERAL_NAME_new();
  if (name == nullptr || value == nullptr) {
    GENERAL_NAME_free(name);
    ASN1_STRING_free(value);
    return Failed(StatusCode::kInternal, "a name of a certificate");
  }
  GENERAL_NAME_set0_value(name, type, value);
  if (sk_GENERAL_NAME_push(names, name) == 0) {
    GENERAL_NAME_free(name);
    return Failed(StatusCode::kInternal, "a name of a certificate");
  }
  return {};
}

ASN1_STRING* Ia5(const std::string& text) {
  ASN1_STRING* const value = ASN1_IA5STRING_new();
  if (value != nullptr) ASN1_STRING_set(value, text.data(), static_cast<int>(text.size()));
  return value;
}

// As structures, not as text that is parsed: a comma in a name must not make two of it.
Status AddNames(X509* certificate, const Names& names) {
  const GeneralNames all(GENERAL_NAMES_new());
  if (!all) return Failed(StatusCode::kInternal, "names of a certificate");
  ROUSE_RETURN_IF_ERROR(Push(all.get(), GEN_URI, Ia5(ToUri(names.identity))));
  for (const std::string& host : names.hosts) {
    ROUSE_RETURN_IF_ERROR(Push(all.get(), GEN_DNS, Ia5(host)));
  }
  for (const std::string& address : names.addresses) {
    ASN1_OCTET_STRING* const ip = a2i_IPADDRESS(address.c_str());
    if (ip == nullptr) {
      ERR_clear_error();
      continue;
    }
    ROUSE_RETURN_IF_ERROR(Push(all.get(), GEN_IPADD, ip));
  }
  if (X509_add1_ext_i2d(certificate, NID_subject_alt_name, all.get(), 0, X509V3_ADD_DEFAULT) != 1) {
    return Failed(StatusCode::kInternal, "names of a certificate");
  }
  return {};
}

// 127 random bits, not zero.
Status SetSerial(X509* certificate) {
  std::array<unsigned char, 16> bytes{};
  if (RAND_bytes(bytes.data(), bytes.size()) != 1) {
    return Failed(StatusCode::kInternal, "random bytes for a serial number");
  }
  bytes[0] = static_cast<unsigned char>((bytes[0] & 0x7f) | 0x40);
  const BigNumber number(BN_bin2bn(bytes.data(), bytes.size(), nullptr));
  if (!number || BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate)) == nullptr) {
    return Failed(StatusCode::kInternal, "a serial number");
  }
  return {};
}

std::time_t ToTime(TimePoint at) {
  return at.time_since_epoch().count();
}

TimePoint FromTime(const ASN1_TIME* at) {
  std::tm parts{};
  if (ASN1_TIME_to_tm(at, &parts) != 1) return {};
  return TimePoint(std::chrono::seconds(::timegm(&parts)));
}

// All that authorities and others have in common, without a signature.
Result<Certificate> Begin(const Key& key, const std::string& name, const Validity& validity) {
  auto certificate = Own(X509_new());
  X509* const x = certificate.get();
  if (x == nullptr) return Failed(StatusCode::kInternal, "a certificate");
  X509_NAME* const subject = X509_get_subject_name(x);
  if (X509_set_version(x, X509_VERSION_3) != 1 ||
      ASN1_TIME_set(X509_getm_notBefore(x), ToTime(validity.not_before)) == nullptr ||
      ASN1_TIME_set(X509_getm_notAfter(x), ToTime(validity.not_after)) == nullptr ||
      X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8,
                                 reinterpret_cast<const unsigned char*>(name.data()),
                                 static_cast<int>(name.size()), -1, 0) != 1 ||
      X509_set_pubkey(x, key.native()) != 1) {
    return Failed(StatusCode::kInternal, "a certificate");
  }
  ROUSE_RETURN_IF_ERROR(SetSerial(x));
  return Certificate(std::move(certificate));
}

Status SignWith(X509* certificate, const Key& key) {
  if (X509_sign(certificate, key.native(), EVP_sha256()) <= 0) {
    return Failed(StatusCode::kInternal, "sign a certificate");
  }
  return {};
}

}  // namespace

Result<Key> Key::Generate() {
  std::shared_ptr<EVP_PKEY> key(EVP_EC_gen("P-256"), [](EVP_PKEY* k) { EVP_PKEY_free(k); });
  if (!key) return Failed(StatusCode::kInternal, "make a key");
  return Key(std::move(key));
}

Result<Key> Key::FromPem(std::string_view pem) {
  const Bio bio = ReadFrom(pem);
  std::shared_ptr<EVP_PKEY> key(PEM_read_bio_PrivateKey(bio.get(), nullptr, &NoPassword, nullptr),
                                [](EVP_PKEY* k) { EVP_PKEY_free(k); });
  if (!key) return Failed(StatusCode::kInvalidArgument, "not a private key in PEM");
  if (!IsP256(key.get())) return InvalidArgument("not a key of EC P-256");
  return Key(std::move(key));
}

Result<std::string> Key::ToPem() const {
  const Bio bio(BIO_new(BIO_s_secmem()));
  if (!bio || PEM_write_bio_PKCS8PrivateKey(bio.get(), key_.get(), nullptr, nullptr, 0, nullptr,
                                            nullptr) != 1) {
    return Failed(StatusCode::kInternal, "write a key");
  }
  return TextOf(bio.get());
}

Result<Certificate> Certificate::FromPem(std::string_view pem) {
  const Bio bio = ReadFrom(pem);
  auto certificate = Own(PEM_read_bio_X509(bio.get(), nullptr, &NoPassword, nullptr));
  if (!certificate) return Failed(StatusCode::kInvalidArgument, "not a certificate in PEM");
  return Certificate(std::move(certificate));
}

std::string Certificate::ToPem() const {
  const Bio bio(BIO_new(BIO_s_mem()));
  if (!bio || PEM_write_bio_X509(bio.get(), certificate_.get()) != 1) {
    ERR_clear_error();
    return "";
  }
  return TextOf(bio.get());
}

Validity Certificate::validity() const {
  return {.not_before = FromTime(X509_get0_notBefore(certificate_.get())),
          .not_after = FromTime(X509_get0_notAfter(certificate_.get()))};
}

Result<Identity> Certificate::identity() const {
  const GeneralNames names(static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(certificate_.get(), NID_subject_alt_name, nullptr, nullptr)));
  std::string uri;
  const int count = names ? sk_GENERAL_NAME_num(names.get()) : 0;
  for (int i = 0; i < count; ++i) {
    const GENERAL_NAME* const name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_URI) continue;
    if (!uri.empty()) return InvalidArgument("the certificate carries several URIs");
    const ASN1_STRING* const text = name->d.uniformResourceIdentifier;
    uri.assign(reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)),
               static_cast<std::size_t>(ASN1_STRING_length(text)));
  }
  if (uri.empty()) return InvalidArgument("the certificate carries no URI");
  return IdentityFromUri(uri);
}

Result<std::string> MakeRequest(const Key& key) {
  const Request request(X509_REQ_new());
  const Bio bio(BIO_new(BIO_s_mem()));
  if (!request || !bio || X509_REQ_set_version(request.get(), X509_REQ_VERSION_1) != 1 ||
      X509_REQ_set_pubkey(request.get(), key.native()) != 1 ||
      X509_REQ_sign(request.get(), key.native(), EVP_sha256()) <= 0 ||
      PEM_write_bio_X509_REQ(bio.get(), request.get()) != 1) {
    return Failed(StatusCode::kInternal, "make a certificate request");
  }
  return TextOf(bio.get());
}

Result<Key> KeyOfRequest(std::string_view pem) {
  if (pem.size() > kMaxRequestBytes) {
    return InvalidArgument("the certificate request is over the limit of " +
                           std::to_string(kMaxRequestBytes) + " bytes");
  }
  const Bio bio = ReadFrom(pem);
  const Request request(PEM_read_bio_X509_REQ(bio.get(), nullptr, &NoPassword, nullptr));
  if (!request) return Failed(StatusCode::kInvalidArgument, "not a certificate request in PEM");
  std::shared_ptr<EVP_PKEY> key(X509_REQ_get_pubkey(request.get()),
                                [](EVP_PKEY* k) { EVP_PKEY_free(k); });
  if (!key || !IsP256(key.get())) {
    ERR_clear_error();
    return InvalidArgument("the certificate request is not for a key of EC P-256");
  }
  if (X509_REQ_verify(request.get(), key.get()) != 1) {
    return Failed(StatusCode::kInvalidArgument,
                  "the certificate request is not signed by the key that it is for");
  }
  return Key(std::move(key));
}

Result<Certificate> MakeAuthority(const Key& key, const std::string& name,
                                  const Validity& validity) {
  ROUSE_ASSIGN_OR_RETURN(Certificate made, Begin(key, name, validity));
  X509* const x = made.native();
  if (X509_set_issuer_name(x, X509_get_subject_name(x)) != 1) {
    return Failed(StatusCode::kInternal, "name an authority");
  }
  ROUSE_RETURN_IF_ERROR(Add(x, x, NID_basic_constraints, "critical,CA:TRUE,pathlen:0"));
  ROUSE_RETURN_IF_ERROR(Add(x, x, NID_key_usage, "critical,keyCertSign"));
  ROUSE_RETURN_IF_ERROR(Add(x, x, NID_subject_key_identifier, "hash"));
  ROUSE_RETURN_IF_ERROR(SignWith(x, key));
  return made;
}

Result<Certificate> Sign(const Certificate& authority, const Key& authority_key, const Key& subject,
                         const Names& names, const Validity& validity) {
  const bool is_operator = names.identity.kind == Identity::Kind::kOperator;
  ROUSE_ASSIGN_OR_RETURN(Certificate made,
                         Begin(subject, is_operator ? "rouse-operator" : "rouse-agent", validity));
  X509* const x = made.native();
  X509* const issuer = authority.native();
  if (X509_set_issuer_name(x, X509_get_subject_name(issuer)) != 1) {
    return Failed(StatusCode::kInternal, "name who signs a certificate");
  }
  ROUSE_RETURN_IF_ERROR(Add(x, issuer, NID_basic_constraints, "critical,CA:FALSE"));
  ROUSE_RETURN_IF_ERROR(Add(x, issuer, NID_key_usage, "critical,digitalSignature"));
  ROUSE_RETURN_IF_ERROR(Add(x, issuer, NID_ext_key_usage, "serverAuth,clientAuth"));
  ROUSE_RETURN_IF_ERROR(Add(x, issuer, NID_subject_key_identifier, "hash"));
  ROUSE_RETURN_IF_ERROR(Add(x, issuer, NID_authority_key_identifier, "keyid:always"));
  ROUSE_RETURN_IF_ERROR(AddNames(x, names));
  ROUSE_RETURN_IF_ERROR(SignWith(x, authority_key));
  return made;
}

}  // namespace rouse::tls

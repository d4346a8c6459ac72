#include "rendezvous-guests.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/error.h"

namespace ckpt {
namespace {

constexpr std::chrono::seconds kHelloLimit{10};
constexpr uint32_t kMembersMax = 65536;

// Takes as long for a wrong secret as for the right one.
bool same_secret(const Secret& a, const Secret& b) {
  uint8_t difference = 0;
  for (size_t i = 0; i < a.size(); i++) difference |= static_cast<uint8_t>(a[i] ^ b[i]);
  return difference == 0;
}

template <class T>
void append(std::vector<uint8_t>& to, const T& value) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
  to.insert(to.end(), bytes, bytes + sizeof value);
}

}  // namespace

RendezvousGuests::~RendezvousGuests() {
  for (const auto& guest : guests_) ::close(guest->fd);
}

void RendezvousGuests::enter(int fd) {
  auto guest = std::make_unique<Guest>();
  guest->fd = fd;
  guest->hello_until = Clock::now() + kHelloLimit;
  guests_.push_back(std::move(guest));
}

void RendezvousGuests::list(std::vector<pollfd>& fds) const {
  for (const auto& guest : guests_) {
    const short events = guest->out != nullptr ? POLLOUT : POLLIN;
    fds.push_back({guest->fd, events, 0});
  }
}

size_t RendezvousGuests::strangers() const noexcept {
  return static_cast<size_t>(std::count_if(guests_.begin(), guests_.end(),
                                           [](const auto& one) { return !one->is_member; }));
}

void RendezvousGuests::move(const pollfd* fds, size_t count) {
  const auto now = Clock::now();
  for (size_t i = 0; i < count; i++) {
    std::unique_ptr<Guest>& guest = guests_[i];
    const bool late = !guest->is_member && now >= guest->hello_until;
    if (!late && (fds[i].revents == 0 || go_on(*guest, fds[i].revents))) continue;
    leave(*guest);
    guest = nullptr;
  }
  guests_.erase(std::remove(guests_.begin(), guests_.end(), nullptr), guests_.end());
  if (!complete_ && count_ > 0 && members_.size() == count_) answer_all();
}

// False: the connection ends.
bool RendezvousGuests::go_on(Guest& guest, short events) {
  if (guest.out != nullptr) return (events & POLLOUT) != 0 && write_answer(guest);
  if (guest.is_member) return false;  // it has gone, or says what nobody has asked
  return read_hello(guest);
}

bool RendezvousGuests::read_hello(Guest& guest) {
  for (;;) {
    size_t wanted = sizeof(Hello);
    if (guest.in.size() >= sizeof(Hello)) {
      if (guest.in.size() == sizeof(Hello)) {
        std::memcpy(&guest.hello, guest.in.data(), sizeof(Hello));
        if (guest.hello.magic != kHelloMagic || !same_secret(guest.hello.secret, secret_) ||
            guest.hello.address_bytes > kWorkerAddressBytesMax)
          return false;
      }
      wanted += guest.hello.address_bytes;
      if (guest.in.size() == wanted) return take_hello(guest);
    }
    const size_t had = guest.in.size();
    guest.in.resize(wanted);
    const ssize_t count = recv(guest.fd, guest.in.data() + had, wanted - had, 0);
    guest.in.resize(had + static_cast<size_t>(std::max<ssize_t>(count, 0)));
    if (count == 0) return false;
    if (count < 0) return errno == EAGAIN || errno == EINTR;
  }
}

bool RendezvousGuests::take_hello(Guest& guest) {
  const Hello& hello = guest.hello;
  guest.is_member = true;  // so far that it is answered
  if (hello.version != kFramesVersion) {
    refuse(guest, CKPT_ERR_UNSUPPORTED, "the processes have different versions of this library");
  } else if (hello.members == 0 || hello.members > kMembersMax || hello.member >= hello.members) {
    refuse(guest, CKPT_ERR_INVALID, format_text("member %u of %u", hello.member, hello.members));
  } else if (count_ != 0 && count_ != hello.members) {
    refuse(guest, CKPT_ERR_INVALID,
           format_text("a communicator of %u members has the id of one of %u", hello.members,
                       count_));
  } else if (complete_ || members_.count(hello.member) != 0) {
    refuse(guest, CKPT_ERR_STATE, format_text("member %u has come already", hello.member));
  } else {
    count_ = hello.members;
    members_[hello.member] = &guest;
  }
  return true;
}

void RendezvousGuests::refuse(Guest& guest, ckpt_status status, const std::string& text) {
  auto out = std::make_shared<std::vector<uint8_t>>();
  append(*out, Answer{static_cast<uint32_t>(status), static_cast<uint32_t>(text.size())});
  out->insert(out->end(), text.begin(), text.end());
  guest.out = std::move(out);
}

bool RendezvousGuests::write_answer(Guest& guest) {
  const std::vector<uint8_t>& out = *guest.out;
  const ssize_t count =
      send(guest.fd, out.data() + guest.sent, out.size() - guest.sent, MSG_NOSIGNAL);
  if (count < 0) return errno == EAGAIN || errno == EINTR;
  guest.sent += static_cast<size_t>(count);
  return guest.sent < out.size();
}

void RendezvousGuests::leave(Guest& guest) {
  ::close(guest.fd);
  const auto found = members_.find(guest.hello.member);
  if (complete_ || found == members_.end() || found->second != &guest) return;
  members_.erase(found);
  if (members_.empty()) count_ = 0;
}

RendezvousGuests::Bytes RendezvousGuests::table() const {
  std::map<ProcessId, uint32_t> numbers;
  std::vector<const Guest*> first;
  std::vector<uint32_t> process_of;
  for (const auto& [_, guest] : members_) {
    const auto [found, is_new] =
        numbers.emplace(guest->hello.process, static_cast<uint32_t>(first.size()));
    if (is_new) first.push_back(guest);
    process_of.push_back(found->second);
  }
  std::vector<uint8_t> bytes;
  append(bytes, static_cast<uint32_t>(first.size()));
  for (const uint32_t process : process_of) append(bytes, process);
  for (const Guest* guest : first) {
    append(bytes, guest->hello.address_bytes);
    bytes.insert(bytes.end(), guest->in.begin() + sizeof(Hello), guest->in.end());
  }
  auto out = std::make_shared<std::vector<uint8_t>>();
  append(*out, Answer{CKPT_OK, static_cast<uint32_t>(bytes.size())});
  out->insert(out->end(), bytes.begin(), bytes.end());
  return out;
}

void RendezvousGuests::answer_all() {
  complete_ = true;
  const Bytes answer = table();
  for (const auto& [_, guest] : members_) {
    if (answer->size() - sizeof(Answer) > kTableBytesMax) {
      refuse(*guest, CKPT_ERR_MEMORY, "the members' addresses have no room in one table");
    } else {
      guest->out = answer;
    }
  }
}

}  // namespace ckpt

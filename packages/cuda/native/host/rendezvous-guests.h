// Who has come to a rendezvous, as far as it has got with each. Nothing that comes over the network
// is believed before the secret was right, and no length after it.
#pragma once

#include <poll.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/wake.h"
#include "rendezvous-frames.h"

namespace ckpt {

class RendezvousGuests {
 public:
  explicit RendezvousGuests(const Secret& secret) : secret_(secret) {}
  ~RendezvousGuests();
  RendezvousGuests(const RendezvousGuests&) = delete;

  // Takes the socket over.
  void enter(int fd);
  // Adds what is to be polled for, one entry each, in the order that move() takes them in.
  void list(std::vector<pollfd>& fds) const;
  void move(const pollfd* fds, size_t count);

  // Every member has come.
  bool complete() const noexcept { return complete_; }
  bool empty() const noexcept { return guests_.empty(); }
  // Those that have not said who they are.
  size_t strangers() const noexcept;

 private:
  using Bytes = std::shared_ptr<const std::vector<uint8_t>>;
  struct Guest {
    int fd;
    Clock::time_point hello_until;
    std::vector<uint8_t> in;
    bool is_member = false;
    Hello hello{};
    Bytes out;
    size_t sent = 0;
  };

  bool go_on(Guest& guest, short events);
  bool read_hello(Guest& guest);
  bool take_hello(Guest& guest);
  bool write_answer(Guest& guest);
  void refuse(Guest& guest, ckpt_status status, const std::string& text);
  void leave(Guest& guest);
  void answer_all();
  Bytes table() const;

  const Secret secret_;
  std::vector<std::unique_ptr<Guest>> guests_;
  std::map<uint32_t, Guest*> members_;
  uint32_t count_ = 0;  // of members, as the first has said
  bool complete_ = false;
};

}  // namespace ckpt

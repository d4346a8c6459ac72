import type { Handle, Library } from '@ckpt/cuda'
import type { RemoteBuffers } from '../memory/protocol.ts'
import type { NetworkDeviceInfo } from '../types.ts'

interface RemotePeer {
  readonly peer: Handle
  /** By key. */
  readonly attached: Map<string, Handle>
}

/** Other daemons' host memory that this rank reads; connections stay for its next update. */
export class RemoteSources {
  readonly #library: Library
  readonly #devices: string
  readonly #changed: (p2p: Handle) => void
  /** By address. */
  readonly #peers = new Map<string, RemotePeer>()
  #p2p: Handle = 0

  /**
   * @param devices that it reads over; empty: whatever UCX finds
   * @param changed is told which end of reads there is, 0: none; whoever outlives the rank can close it
   */
  constructor(
    library: Library,
    devices: readonly NetworkDeviceInfo[] = [],
    changed: (p2p: Handle) => void = () => {},
  ) {
    this.#library = library
    this.#changed = changed
    this.#devices = devices.map(({ name }) => `${name}:1`).join(',')
  }

  /**
   * Per owner: what its buffers are read by; null: the rank does not read of it. What was attached for an earlier update and is not
   * among these goes.
   *
   * @throws CkptError `not_supported` where there is no UCX, or no network leads there
   */
  attach(remotes: readonly (RemoteBuffers | null)[]): (Uint32Array | null)[] {
    const wanted = new Map<string, Set<string>>()
    const handles = remotes.map((remote) => {
      if (remote === null) return null
      const address = remote.address.toHex()
      const keys = wanted.get(address) ?? new Set()
      wanted.set(address, keys)
      for (const key of remote.keys) keys.add(key.toHex())
      const peer = this.#peerAt(address, remote.address)
      return Uint32Array.from(remote.keys, (key) => this.#handleOf(peer, key))
    })
    this.#prune(wanted)
    return handles
  }

  #peerAt(text: string, address: Uint8Array): RemotePeer {
    const known = this.#peers.get(text)
    if (known !== undefined) return known
    if (this.#p2p === 0) this.#open()
    const peer = { peer: this.#library.p2p.connect(this.#p2p, address), attached: new Map() }
    this.#peers.set(text, peer)
    return peer
  }

  #open(): void {
    this.#p2p = this.#library.p2p.open(this.#devices)
    this.#changed(this.#p2p)
  }

  #handleOf({ peer, attached }: RemotePeer, key: Uint8Array): Handle {
    const text = key.toHex()
    const known = attached.get(text)
    if (known !== undefined) return known
    const handle = this.#library.p2p.attach(peer, key)
    attached.set(text, handle)
    return handle
  }

  #prune(wanted: ReadonlyMap<string, ReadonlySet<string>>): void {
    // an update that reads of nobody is no reason to connect again later
    if (wanted.size === 0) return
    for (const [address, { peer, attached }] of this.#peers) {
      const keys = wanted.get(address)
      for (const [key, handle] of attached) {
        if (keys?.has(key)) continue
        this.#library.p2p.detach(handle)
        attached.delete(key)
      }
      if (keys !== undefined) continue
      this.#library.p2p.disconnect(peer)
      this.#peers.delete(address)
    }
  }

  /** Of the connections there are. */
  transports(): string[] {
    const peers = [...this.#peers.values()]
    return [...new Set(peers.map(({ peer }) => this.#library.p2p.transport(peer)))]
  }

  /** Ends the reads that go on; after any failure, for nobody knows which connection it was. */
  drop(): void {
    for (const { peer, attached } of this.#peers.values()) {
      this.#library.p2p.disconnect(peer)
      for (const handle of attached.values()) this.#library.p2p.detach(handle)
    }
    this.#peers.clear()
  }

  close(): void {
    this.drop()
    if (this.#p2p === 0) return
    const p2p = this.#p2p
    this.#p2p = 0
    this.#changed(0)
    this.#library.p2p.close(p2p)
  }
}

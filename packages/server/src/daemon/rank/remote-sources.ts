import type { Handle, Library } from '@ckpt/cuda'
import type { RemoteBuffers } from '../memory/protocol.ts'
import type { ReadHandles } from './messages.ts'
import type { NetworkDeviceInfo } from '../types.ts'
import { ucxDevices } from '../ucx-devices.ts'

interface RemotePeer {
  readonly peer: Handle
  /** By key. */
  readonly attached: Map<string, Handle>
}

/** Other daemons' host memory that this rank reads; connections stay for its next update. */
export class RemoteSources {
  readonly #library: Library
  readonly #devices: string
  readonly #changed: (handles: ReadHandles) => void
  /** By address. */
  readonly #peers = new Map<string, RemotePeer>()
  #p2p: Handle = 0

  /**
   * @param devices that it reads over; empty: whatever UCX finds
   * @param changed is told what there is; whoever outlives the rank can end it with {@link endReads}
   */
  constructor(
    library: Library,
    devices: readonly NetworkDeviceInfo[] = [],
    changed: (handles: ReadHandles) => void = () => {},
  ) {
    this.#library = library
    this.#changed = changed
    this.#devices = ucxDevices(devices)
  }

  /**
   * Per owner: what its buffers are read by; null: the rank does not read of it. What was attached for an earlier update and is not
   * among these goes.
   *
   * @throws CkptError `not_supported` where there is no UCX, or no network leads there
   */
  attach(remotes: readonly (RemoteBuffers | null)[]): (Uint32Array | null)[] {
    try {
      return this.#attach(remotes)
    } finally {
      if (this.#peers.size > 0) this.#changed(this.#handles)
    }
  }

  #attach(remotes: readonly (RemoteBuffers | null)[]): (Uint32Array | null)[] {
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

  get #handles(): ReadHandles {
    const peers = [...this.#peers.values()]
    return {
      p2p: this.#p2p,
      peers: peers.map(({ peer }) => peer),
      remotes: peers.flatMap(({ attached }) => [...attached.values()]),
    }
  }

  #peerAt(text: string, address: Uint8Array): RemotePeer {
    const known = this.#peers.get(text)
    if (known !== undefined) return known
    if (this.#p2p === 0) this.#p2p = this.#library.p2p.open(this.#devices)
    const peer = { peer: this.#library.p2p.connect(this.#p2p, address), attached: new Map() }
    this.#peers.set(text, peer)
    return peer
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
    if (this.#peers.size === 0) return
    const handles = { ...this.#handles, p2p: 0 }
    this.#peers.clear()
    endReads(this.#library, handles)
    this.#changed(this.#handles)
  }

  close(): void {
    if (this.#p2p === 0) return
    const handles = this.#handles
    this.#p2p = 0
    this.#peers.clear()
    endReads(this.#library, handles)
    this.#changed(this.#handles)
  }
}

/** Also those that go on; all of them, whatever one says. @throws CkptError the first that failed */
export function endReads(library: Library, { p2p, peers, remotes }: ReadHandles): void {
  const ends = [
    ...peers.map((peer) => () => library.p2p.disconnect(peer)),
    ...remotes.map((remote) => () => library.p2p.detach(remote)),
    ...(p2p === 0 ? [] : [() => library.p2p.close(p2p)]),
  ]
  let first: unknown = null
  for (const end of ends) {
    try {
      end()
    } catch (error) {
      first ??= error
    }
  }
  if (first !== null) throw first
}

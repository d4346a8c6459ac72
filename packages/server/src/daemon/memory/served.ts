import type { Handle, Library } from '@ckpt/cuda'
import type { NetworkDeviceInfo } from '../types.ts'
import { ucxDevices } from '../ucx-devices.ts'
import type { RemoteBuffers } from './protocol.ts'

/** Host memory that ranks of other daemons may read. A buffer stays registered for that until it is freed. */
export class ServedMemory {
  readonly #library: Library
  readonly #devices: string
  readonly #keys = new Map<Handle, Uint8Array>()
  #p2p: Handle = 0
  #address = new Uint8Array(0)

  /** @param devices that it is read over: all that ranks of this daemon have; empty: whatever UCX finds */
  constructor(library: Library, devices: readonly NetworkDeviceInfo[]) {
    this.#library = library
    this.#devices = ucxDevices(devices)
  }

  /**
   * What other daemons need to read these buffers. What maps a file is read for them as long as its lease holds.
   *
   * @throws CkptError `not_supported` where there is no UCX
   */
  serve(buffers: readonly Handle[]): RemoteBuffers {
    if (this.#p2p === 0) this.#open()
    return { address: this.#address, keys: buffers.map((buffer) => this.#keyOf(buffer)) }
  }

  #open(): void {
    this.#p2p = this.#library.p2p.open(this.#devices)
    this.#address = new Uint8Array(this.#library.p2p.address(this.#p2p))
  }

  #keyOf(buffer: Handle): Uint8Array {
    const known = this.#keys.get(buffer)
    if (known !== undefined) return known
    const key = this.#library.p2p.share(this.#p2p, buffer)
    this.#keys.set(buffer, key)
    return key
  }

  /** It is about to be freed. */
  forget(buffer: Handle): void {
    if (!this.#keys.delete(buffer)) return
    this.#library.p2p.unshare(this.#p2p, buffer)
  }

  close(): void {
    if (this.#p2p !== 0) this.#library.p2p.close(this.#p2p)
    this.#p2p = 0
    this.#keys.clear()
  }
}

import {
  type BuffersAnswer,
  type BuffersRequest,
  type CheckpointDetail,
  type CheckpointSummary,
  CkptError,
  DTYPES,
  type DropAnswer,
  type GatherAnswer,
  type Metas,
  type RegisterAnswer,
  type RegisterRequest,
  type TensorsRequest,
} from '@ckpt/core'
import { MemoryClient } from '../memory/client.ts'
import type { LoadedPart, PartId, RemoteBuffers } from '../memory/protocol.ts'
import { memoryNodes } from '../memory/nodes.ts'
import type { Offer, Registry } from './registry.ts'
import { defaultBudgetBytes } from './budget.ts'
import { type LentBuffer, LentBuffers } from './lent.ts'
import { makeMetas, requireReadable } from './metas.ts'
import { checkTensors } from './tensors.ts'
import { Registrations } from './registrations.ts'
import { Room } from './room.ts'
import { Turns } from './turns.ts'
import { emptyVersion, type HeldPart, requireUsable, Versions } from './versions.ts'
import type { DaemonOptions, HeldVersion, VersionLease } from '../types.ts'

/** Starts the memory Worker; an empty registry. @throws CkptError `native_missing` */
export async function createRegistry(options: DaemonOptions): Promise<Registry> {
  const { library, allowedDirs, hostMemoryBytes } = options
  const budgetBytes = hostMemoryBytes ?? defaultBudgetBytes()
  const versions = new Versions(options.ranks.map(({ rank }) => rank))
  const rankNodes = memoryNodes(options.ranks)
  const networkDevices = options.ranks.flatMap((rank) => rank.networkDevices ?? [])
  const memory = await MemoryClient.start(
    { library, allowedDirs, budgetBytes, rankNodes, networkDevices },
    (id, path) => {
      const part = versions.byId(id)
      if (part !== undefined) part.invalid = path
    },
  )
  return new HeldCheckpoints(options, budgetBytes, versions, memory)
}

class HeldCheckpoints implements Registry {
  readonly #options: DaemonOptions
  readonly #budgetBytes: number
  readonly #versions: Versions
  readonly #memory: MemoryClient
  readonly #turns = new Turns()
  readonly #lent = new LentBuffers()
  /** Updates of a name that were accepted and have not ended. */
  readonly #claims = new Map<string, number>()
  readonly #room: Room
  readonly #registrations: Registrations
  /** Parts of each version that was handed out. */
  readonly #partsOf = new WeakMap<HeldVersion, readonly HeldPart[]>()
  /** What `metas` tells: a version as it was gathered last, or what was loaded since. */
  #gathered: { readonly version: HeldVersion; readonly parts: readonly HeldPart[] } | null = null
  #loadedMetas: Metas | null = null
  #closed = false

  constructor(
    options: DaemonOptions,
    budgetBytes: number,
    versions: Versions,
    memory: MemoryClient,
  ) {
    this.#options = options
    this.#budgetBytes = budgetBytes
    this.#versions = versions
    this.#memory = memory
    const books = {
      versions,
      turns: this.#turns,
      lent: this.#lent,
      claims: this.#claims,
      memory,
    }
    this.#room = new Room(books, options.evict)
    this.#registrations = new Registrations(books, this.#room, () => this.#requireOpen())
  }

  register(name: string, request: RegisterRequest, owner: number | null): Promise<RegisterAnswer> {
    const consume = request.consume ?? this.#options.inPlace === 'consume'
    const inPlace = request.in_place ?? (consume || this.#options.inPlace !== 'never')
    // tensors that two ranks hold are compared, which takes their bytes
    const stream = request.wait === false && owner === null
    return this.#registrations.register({
      name,
      owner,
      version: request.version ?? null,
      replace: request.replace ?? false,
      files: request.files,
      stream,
      load: (part) =>
        this.#memory.call('load', {
          part,
          owner,
          files: request.files,
          inPlace,
          // files that nobody asked to consume in this request are kept when it asks for a copy
          consume: consume && (inPlace || request.consume === true),
          peers: this.#versions.peers(name, owner),
          // with `replace` the other ranks may be about to bring their new version: the update will tell
          refuseConflicts: request.replace !== true,
          stream,
        }),
    })
  }

  pull(name: string, offer: Offer, replace: boolean): Promise<RegisterAnswer> {
    const { version } = offer
    const load = (part: PartId) => this.#pull(part, offer)
    const rest = { owner: null, files: [], stream: false }
    return this.#registrations.register({ name, version, replace, load, ...rest })
  }

  async #pull(
    part: PartId,
    { table, sources, remotes, devices, gone, confirm }: Offer,
  ): Promise<LoadedPart> {
    gone.throwIfAborted()
    const end = () => {
      const { failure } = CkptError.wrap(gone.reason)
      this.#memory.call('end_pull', { part, failure }).catch(() => {})
    }
    gone.addEventListener('abort', end)
    try {
      const loaded = await this.#memory.call('pull', { part, table, sources, remotes, devices })
      try {
        await confirm()
        return loaded
      } catch (error) {
        await this.#memory.call('drop', { part })
        throw error
      }
    } finally {
      gone.removeEventListener('abort', end)
    }
  }

  async tensors(name: string, request: TensorsRequest): Promise<RegisterAnswer> {
    return this.#registrations.register({
      name,
      owner: null,
      version: request.version ?? null,
      replace: request.replace ?? false,
      files: [],
      stream: false,
      load: async (part) => {
        const buffers = checkTensors(name, request.buffers, this.#lent)
        const lent = request.buffers.map(({ id }) => this.#lent.get(id)!)
        for (const buffer of lent) buffer.part = part
        try {
          return await this.#memory.call('adopt', { part, name, buffers })
        } catch (error) {
          for (const buffer of lent) buffer.part = null
          throw error
        }
      },
    })
  }

  async buffers(name: string, { bytes, replace }: BuffersRequest): Promise<BuffersAnswer> {
    this.#requireOpen()
    return this.#turns.run(name, async () => {
      this.#requireOpen()
      // said before the trainer writes, not after
      if (replace === false) this.#registrations.requireFree(name, null)
      await this.#room.dropAll(this.#versions.superseded(name))
      const registration = { name, owner: null, replace: replace ?? false }
      try {
        const { value: shared, dropped } = await this.#room.make(
          registration,
          this.#registrations.nextPart,
          () => this.#memory.call('share', { name, bytes }),
        )
        const buffers = shared.map(({ buffer, path }, index) => {
          const lent = this.#lent.add(name, buffer, bytes[index]!)
          return { id: lent.id, path, bytes: lent.bytes }
        })
        return { buffers, ...dropped }
      } catch (error) {
        throw this.#room.explain(error, name)
      }
    })
  }

  async abandon(buffers: readonly string[]): Promise<void> {
    if (this.#closed) return
    await this.#unshare(this.#lent.unused(null).filter(({ id }) => buffers.includes(id)))
  }

  async drop(name: string, { force }: { force: boolean }): Promise<DropAnswer> {
    this.#requireOpen()
    this.#requireIdle(name)
    return this.#turns.run(name, async () => {
      this.#requireIdle(name)
      this.#registrations.forgetFailedRead(name)
      const parts = this.#versions.all(name)
      const existed = parts.length > 0
      await this.#room.dropAll(parts)
      await this.#unshare(this.#lent.unused(name))
      if (force) await this.#memory.call('trim', { name })
      return { name, existed }
    })
  }

  claim(name: string): () => void {
    this.#claims.set(name, (this.#claims.get(name) ?? 0) + 1)
    let given = true
    return () => {
      if (!given) return
      given = false
      const left = this.#claims.get(name)! - 1
      if (left === 0) this.#claims.delete(name)
      else this.#claims.set(name, left)
    }
  }

  lease(name: string): VersionLease {
    const failed = this.#registrations.failedRead(name)
    if (failed !== undefined) {
      this.#registrations.forgetFailedRead(name)
      throw failed
    }
    const { version, parts } = this.#usable(name)
    if (version.table.names.length === 0) {
      throw new CkptError('checkpoint_empty', `checkpoint '${name}' has no tensors`)
    }
    this.#versions.lease(parts)
    this.#partsOf.set(version, parts)
    let released = false
    const complete = readSeconds(parts)
    complete.catch(() => {}) // whoever waits for it is told
    return {
      version,
      complete,
      check: version.files.length === 0 ? null : () => this.check(version),
      serve: (nodes) => this.#serve(version, nodes),
      release: (succeeded) => {
        if (released) return
        released = true
        this.#release(parts, succeeded)
      },
    }
  }

  async #serve(
    { buffers }: HeldVersion,
    nodes: ReadonlySet<number>,
  ): Promise<(RemoteBuffers | null)[]> {
    const asked = nodes.has(0) ? buffers : []
    const served = asked.map((own) => this.#memory.call('serve', { buffers: [...own] }))
    return asked === buffers ? Promise.all(served) : buffers.map(() => null)
  }

  async check(version: HeldVersion): Promise<void> {
    if (version.files.length === 0) return
    const parts = this.#partsOf.get(version) ?? []
    const changed = parts.find(({ invalid }) => invalid !== null)?.invalid
    if (changed) {
      throw new CkptError('file_changed', `${changed}: was changed after it was registered`)
    }
    try {
      await this.#memory.call('check', { files: version.files })
    } catch (error) {
      const { message } = CkptError.wrap(error)
      for (const part of parts) {
        part.invalid ??=
          part.loaded.filePaths.find((path) => message.startsWith(`${path}:`)) ?? null
      }
      throw error
    }
  }

  gather(name: string): GatherAnswer {
    const begin = performance.now()
    // a read that failed is told here too, but stays to be told: gathering is no use of the version
    const known =
      this.#versions.all(name).length > 0 ||
      this.#room.replaces(name) ||
      this.#registrations.failedRead(name) !== undefined
    const { version, parts } = known
      ? this.#usable(name)
      : { version: emptyVersion(name), parts: [] }
    this.#gathered = { version, parts }
    this.#loadedMetas = null
    return {
      digest: version.layoutDigest,
      ranks: this.#options.ranks.length,
      tensors: version.table.names.length,
      bytes: version.bytes,
      seconds: (performance.now() - begin) / 1000,
    }
  }

  get busy(): boolean {
    return this.#turns.anyBusy || this.list().some(({ state }) => state === 'reading')
  }

  list(): CheckpointSummary[] {
    return this.#versions.names.map((name) => this.#summary(name))
  }

  describe(name: string): CheckpointDetail {
    const { table } = this.#versions.newest(name).version
    const tensors = table.names.map((tensor, row) => ({
      name: tensor,
      dtype: DTYPES[table.dtypes[row]!]!.name,
      shape: [...table.shapes[row]!],
      bytes: table.bytes[row]!,
    }))
    return { ...this.#summary(name), tensor_list: tensors }
  }

  metas(): Metas {
    if (this.#loadedMetas !== null) return this.#loadedMetas
    if (this.#gathered === null) return {}
    const { version, parts } = this.#gathered
    const [first] = this.#options.ranks
    const owners = parts.map(({ owner, version: told, loaded: { layoutDigest } }) => {
      return { rank: owner ?? first?.rank ?? 0, version: told, layoutDigest }
    })
    return makeMetas(version, owners)
  }

  loadMetas(metas: Metas): void {
    requireReadable(metas)
    this.#loadedMetas = metas
  }

  memory(): { pinned_bytes: number; budget_bytes: number } {
    return { pinned_bytes: this.#memory.pinnedBytes, budget_bytes: this.#budgetBytes }
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    try {
      await this.#memory.call('close', null)
    } finally {
      this.#memory.terminate()
    }
  }

  /** Frees buffers that hold no version. */
  async #unshare(lent: readonly LentBuffer[]): Promise<void> {
    if (lent.length === 0) return
    this.#lent.forget(lent)
    await this.#memory.call('unshare', { buffers: lent.map(({ buffer }) => buffer) })
  }

  #release(parts: readonly HeldPart[], succeeded: boolean): void {
    const gone = this.#versions.release(parts, succeeded)
    // the Worker frees in the order of the calls; when it is dead there is nothing to free
    this.#room.dropAll(gone).catch(() => {})
  }

  #usable(name: string) {
    const failed = this.#registrations.failedRead(name)
    if (failed !== undefined) throw failed
    if (this.#room.replaces(name)) {
      throw new CkptError(
        'checkpoint_busy',
        `checkpoint '${name}' is being replaced, and host memory does not hold both versions: try again`,
      )
    }
    if (this.#loadedMetas !== null && this.#versions.all(name).length === 0) {
      throw new CkptError(
        'not_supported',
        `checkpoint '${name}' is not held here, and the metas that were loaded only tell where it lies (ranks ` +
          `${Object.keys(this.#loadedMetas).join(', ')}): \`ckpt join\` reads it there`,
      )
    }
    const newest = this.#versions.newest(name)
    requireUsable(name, newest.parts)
    return newest
  }

  #summary(name: string): CheckpointSummary {
    const { version, parts } = this.#versions.newest(name)
    const invalid = parts.some((part) => part.invalid !== null)
    const reading = parts.some((part) => part.reading)
    return {
      name,
      version: version.version,
      state: invalid ? 'invalid' : reading ? 'reading' : 'complete',
      tensors: version.table.names.length,
      bytes: version.bytes,
      digest: version.layoutDigest,
      in_place: version.files.length > 0,
      files: parts.flatMap(({ files }) => files),
      in_use: this.#versions.all(name).some(({ leases }) => leases > 0),
    }
  }

  #requireOpen(): void {
    if (this.#closed) throw new CkptError('shutting_down', 'the daemon is ending')
  }

  #requireIdle(name: string): void {
    if (!this.#versions.all(name).some(({ leases }) => leases > 0)) return
    throw new CkptError('checkpoint_busy', `an update uses checkpoint '${name}'`)
  }
}

async function readSeconds(parts: readonly HeldPart[]): Promise<number> {
  const finished = await Promise.all(parts.map((part) => part.complete))
  return Math.max(...finished.map(({ seconds }) => seconds))
}

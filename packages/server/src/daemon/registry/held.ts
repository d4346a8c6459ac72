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
import { HostMemoryError } from '../memory/host-memory-error.ts'
import type { FinishedLoad, LoadedPart, PartId } from '../memory/protocol.ts'
import type { Registry } from './registry.ts'
import { defaultBudgetBytes } from './budget.ts'
import { chooseVictims, type Victims } from './eviction.ts'
import { explainMemory } from './explain.ts'
import { type LentBuffer, LentBuffers } from './lent.ts'
import { makeMetas, requireReadable } from './metas.ts'
import { checkTensors } from './tensors.ts'
import { log } from '../log.ts'
import { Turns } from './turns.ts'
import { emptyVersion, type HeldPart, requireUsable, supersedes, Versions } from './versions.ts'
import type { DaemonOptions, HeldVersion, VersionLease } from '../types.ts'

export async function openHeldCheckpoints(options: DaemonOptions): Promise<Registry> {
  const budgetBytes = options.hostMemoryBytes ?? defaultBudgetBytes()
  const held = new HeldCheckpoints(options, budgetBytes)
  await held.start()
  return held
}

/** What a registration asks of the memory Worker. */
interface Registration {
  readonly name: string
  readonly owner: number | null
  readonly version: string | null
  readonly replace: boolean
  readonly files: readonly string[]
  /** Answer when the tensors are known and memory is taken: updates need not wait for the bytes. */
  readonly stream: boolean
  readonly load: (part: PartId) => Promise<LoadedPart>
}

class HeldCheckpoints implements Registry {
  readonly #options: DaemonOptions
  readonly #budgetBytes: number
  readonly #versions: Versions
  readonly #turns = new Turns()
  readonly #lent = new LentBuffers()
  /** Names whose version went before the next one is complete. */
  readonly #replacing = new Set<string>()
  /** What failed in the last read of a name, until somebody who wanted that version has been told. */
  readonly #failedReads = new Map<string, CkptError>()
  /** Updates of a name that were accepted and have not ended. */
  readonly #claims = new Map<string, number>()
  /** Parts of each version that was handed out. */
  readonly #partsOf = new WeakMap<HeldVersion, readonly HeldPart[]>()
  #memory: MemoryClient | null = null
  #nextPart: PartId = 1
  /** What `metas` tells: a version as it was gathered last, or what was loaded since. */
  #gathered: { readonly version: HeldVersion; readonly parts: readonly HeldPart[] } | null = null
  #loadedMetas: Metas | null = null
  #closed = false

  constructor(options: DaemonOptions, budgetBytes: number) {
    this.#options = options
    this.#budgetBytes = budgetBytes
    this.#versions = new Versions(options.ranks.map(({ rank }) => rank))
  }

  async start(): Promise<void> {
    const { library, allowedDirs } = this.#options
    this.#memory = await MemoryClient.start(
      { library, allowedDirs, budgetBytes: this.#budgetBytes },
      (id, path) => {
        const part = this.#versions.byId(id)
        if (part !== undefined) part.invalid = path
      },
    )
  }

  register(name: string, request: RegisterRequest, owner: number | null): Promise<RegisterAnswer> {
    const consume = request.consume ?? this.#options.inPlace === 'consume'
    const inPlace = request.in_place ?? (consume || this.#options.inPlace !== 'never')
    // tensors that two ranks hold are compared, which takes their bytes
    const stream = request.wait === false && owner === null
    return this.#register({
      name,
      owner,
      version: request.version ?? null,
      replace: request.replace ?? false,
      files: request.files,
      stream,
      load: (part) =>
        this.#call.call('load', {
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

  async tensors(name: string, request: TensorsRequest): Promise<RegisterAnswer> {
    return this.#register({
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
          return await this.#call.call('adopt', { part, name, buffers })
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
      if (replace === false) this.#requireFree(name, null)
      await this.#dropAll(this.#versions.superseded(name))
      const registration = { name, owner: null, replace: replace ?? false }
      try {
        const { value: shared, dropped } = await this.#withRoom(registration, this.#nextPart, () =>
          this.#call.call('share', { name, bytes }),
        )
        const buffers = shared.map(({ buffer, path }, index) => {
          const lent = this.#lent.add(name, buffer, bytes[index]!)
          return { id: lent.id, path, bytes: lent.bytes }
        })
        return { buffers, ...dropped }
      } catch (error) {
        throw this.#explain(error, name)
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
      this.#failedReads.delete(name)
      const parts = this.#versions.all(name)
      const existed = parts.length > 0
      await this.#dropAll(parts)
      await this.#unshare(this.#lent.unused(name))
      if (force) await this.#call.call('trim', { name })
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
    const failed = this.#failedReads.get(name)
    if (failed !== undefined) {
      this.#failedReads.delete(name)
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
      release: (succeeded) => {
        if (released) return
        released = true
        this.#release(parts, succeeded)
      },
    }
  }

  async check(version: HeldVersion): Promise<void> {
    if (version.files.length === 0) return
    const parts = this.#partsOf.get(version) ?? []
    const changed = parts.find(({ invalid }) => invalid !== null)?.invalid
    if (changed) {
      throw new CkptError('file_changed', `${changed}: was changed after it was registered`)
    }
    try {
      await this.#call.call('check', { files: version.files })
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
    const held = this.#versions.all(name).length > 0 || this.#replacing.has(name)
    const { version, parts } = held
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
    return makeMetas(version, parts, this.#options.ranks[0]?.rank ?? 0)
  }

  loadMetas(metas: Metas): void {
    requireReadable(metas)
    this.#loadedMetas = metas
  }

  memory(): { pinned_bytes: number; budget_bytes: number } {
    return { pinned_bytes: this.#memory?.pinnedBytes ?? 0, budget_bytes: this.#budgetBytes }
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    const memory = this.#call
    try {
      await memory.call('close', null)
    } finally {
      memory.terminate()
    }
  }

  get #call(): MemoryClient {
    if (this.#memory === null) throw new CkptError('internal', 'the registry was not started')
    return this.#memory
  }

  async #register(registration: Registration): Promise<RegisterAnswer> {
    this.#requireOpen()
    const { name } = registration
    const begin = performance.now()
    const answer = Promise.withResolvers<RegisterAnswer>()
    // its turn lasts until the bytes are there, however early the answer is given
    this.#turns
      .run(name, () => this.#registerNow(registration, begin, answer.resolve))
      .catch(answer.reject)
    try {
      return await answer.promise
    } catch (error) {
      throw withPhase(this.#explain(error, name))
    }
  }

  /** A registration whose turn it is. Ends when every byte is in host memory. */
  async #registerNow(
    registration: Registration,
    begin: number,
    answer: (answer: RegisterAnswer) => void,
  ): Promise<void> {
    this.#requireOpen()
    const { name, owner } = registration
    if (!registration.replace) this.#requireFree(name, owner)
    this.#failedReads.delete(name)
    await this.#dropAll(this.#versions.superseded(name))
    const { part, dropped } = await this.#load(registration)
    const { version, loaded, reading } = part
    const more = reading ? [] : (await part.complete).notes
    const notes = [...loaded.notes, ...more]
    answer({
      name,
      version,
      tensors: loaded.table.names.length,
      bytes: loaded.bytes,
      seconds: (performance.now() - begin) / 1000,
      ...(reading ? { reading: true } : {}),
      ...dropped,
      ...(notes.length > 0 ? { notes } : {}),
    })
    await part.complete
  }

  /** Waits for the bytes of a part that is being read. When that fails nobody gets the part any more. */
  async #finish(part: HeldPart): Promise<FinishedLoad> {
    const { id, name, loaded } = part
    try {
      const finished = await this.#call.call('finish', { part: id })
      this.#versions.completed(part)
      const { seconds, notes } = finished
      if (loaded.reading !== null) {
        const { bytes } = loaded.reading
        log.info('read {name}: {bytes} bytes in {seconds} s', { name, bytes, seconds })
      }
      for (const note of notes) log.info('{name}: {note}', { name, note })
      return finished
    } catch (error) {
      await this.#readFailed(part, CkptError.wrap(error))
      throw error
    }
  }

  /** An update that uses the part fails with it and gives it back. Else the next one that wants it must be told. */
  async #readFailed(part: HeldPart, error: CkptError): Promise<void> {
    const { name } = part
    const { message } = error
    log.warn('reading {name} failed: {message}', { name, message })
    if (!this.#versions.failed(part)) return
    if (part.reading) {
      const held = this.#versions.held(name, null).length > 0
      const next = held ? '; the next update takes the version that was held before' : ''
      const words = `checkpoint '${name}' could not be read to its end: ${message}${next}`
      this.#failedReads.set(name, CkptError.from({ ...error.failure, message: words }))
    }
    await this.#dropAll([part]).catch(() => {})
  }

  async #load(
    registration: Registration,
  ): Promise<{ readonly part: HeldPart; readonly dropped: Dropped }> {
    const id = this.#nextPart++
    const { value: part, dropped } = await this.#withRoom(registration, id, async () =>
      this.#add(registration, id, await registration.load(id)),
    )
    return { part, dropped }
  }

  /**
   * Takes memory beside what is held. When the budget does not have both, the version that is replaced goes first, and where the
   * user allows it other checkpoints.
   */
  async #withRoom<T>(
    { name, owner, replace }: Pick<Registration, 'name' | 'owner' | 'replace'>,
    id: PartId,
    take: () => Promise<T>,
  ): Promise<{ readonly value: T; readonly dropped: Dropped }> {
    try {
      return { value: await take(), dropped: {} }
    } catch (error) {
      if (!(error instanceof HostMemoryError)) throw error
      const previous = this.#versions
        .all(name)
        .filter((part) => replace && part.leases === 0 && supersedes({ id, owner }, part))
      const checkpoints = this.#evictable(name).map((one) => this.#versions.all(one))
      const victims = chooseVictims(previous, checkpoints, error.shortBytes)
      if (victims === null) throw error
      if (victims.previous) this.#replacing.add(name)
      try {
        await this.#dropAll(victims.parts)
        for (const evicted of victims.evicted) log.info('evicted {evicted}', { evicted })
        return { value: await take(), dropped: droppedOf(victims) }
      } catch (second) {
        throw withDropped(this.#explain(second, name), victims.evicted)
      } finally {
        this.#replacing.delete(name)
      }
    }
  }

  /** Other names whose checkpoints the user allows to go: nothing is done with them, and no update is to come. */
  #evictable(name: string): string[] {
    if (!this.#options.evict) return []
    return this.#versions.names.filter(
      (one) => one !== name && !this.#claims.has(one) && !this.#turns.busy(one),
    )
  }

  #add(registration: Registration, id: PartId, loaded: LoadedPart): HeldPart {
    const { name, owner, version, files, stream } = registration
    const part: HeldPart = {
      id,
      name,
      owner,
      version,
      files,
      loaded,
      leases: 0,
      usedAt: 0,
      outdated: false,
      invalid: null,
      reading: loaded.reading !== null,
      complete: Promise.resolve({ seconds: 0, notes: [] }),
      failed: false,
    }
    this.#versions.add(part)
    if (stream) part.complete = this.#finish(part)
    return part
  }

  async #dropAll(parts: readonly HeldPart[]): Promise<void> {
    const dropped = parts.map((part) => {
      this.#versions.remove(part)
      this.#lent.forgetPart(part.id)
      return this.#call.call('drop', { part: part.id })
    })
    await Promise.all(dropped)
  }

  /** Frees buffers that hold no version. */
  async #unshare(lent: readonly LentBuffer[]): Promise<void> {
    if (lent.length === 0) return
    this.#lent.forget(lent)
    await this.#call.call('unshare', { buffers: lent.map(({ buffer }) => buffer) })
  }

  #release(parts: readonly HeldPart[], succeeded: boolean): void {
    const gone = this.#versions.release(parts, succeeded)
    // the Worker frees in the order of the calls; when it is dead there is nothing to free
    this.#dropAll(gone).catch(() => {})
  }

  #usable(name: string) {
    const failed = this.#failedReads.get(name)
    if (failed !== undefined) throw failed
    if (this.#replacing.has(name)) {
      throw new CkptError(
        'checkpoint_busy',
        `checkpoint '${name}' is being replaced, and host memory does not hold both versions: try again`,
      )
    }
    if (this.#loadedMetas !== null && this.#versions.all(name).length === 0) {
      throw new CkptError(
        'not_supported',
        `checkpoint '${name}' is not held here, and reading from the owners of loaded metas (ranks ` +
          `${Object.keys(this.#loadedMetas).join(', ')}) is not supported yet`,
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

  #requireFree(name: string, owner: number | null): void {
    if (this.#versions.held(name, owner).length === 0) return
    throw new CkptError(
      'checkpoint_exists',
      `checkpoint '${name}' is registered already: drop it, or register with "replace": true`,
    )
  }

  #requireIdle(name: string): void {
    if (!this.#versions.all(name).some(({ leases }) => leases > 0)) return
    throw new CkptError('checkpoint_busy', `an update uses checkpoint '${name}'`)
  }

  #explain(error: unknown, name: string): CkptError {
    return explainMemory(error, name, this.#versions, this.#lent)
  }
}

/** What an answer says of it. */
type Dropped = Pick<RegisterAnswer, 'previous_dropped' | 'evicted'>

function droppedOf({ previous, evicted }: Victims): Dropped {
  return {
    ...(previous ? { previous_dropped: true } : {}),
    ...(evicted.length > 0 ? { evicted: [...evicted] } : {}),
  }
}

async function readSeconds(parts: readonly HeldPart[]): Promise<number> {
  const finished = await Promise.all(parts.map((part) => part.complete))
  return Math.max(...finished.map(({ seconds }) => seconds))
}

function withDropped(error: CkptError, evicted: readonly string[]): CkptError {
  if (evicted.length === 0) return error
  const { failure } = error
  const names = evicted.map((name) => `'${name}'`).join(', ')
  return CkptError.from({ ...failure, message: `${failure.message}; dropped before: ${names}` })
}

function withPhase(error: CkptError): CkptError {
  return CkptError.from({ phase: 'register', ...error.failure })
}

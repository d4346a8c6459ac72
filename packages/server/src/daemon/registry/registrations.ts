import { CkptError, type RegisterAnswer } from '@ckpt/core'
import type { FinishedLoad, LoadedPart, PartId } from '../memory/protocol.ts'
import { log } from '../log.ts'
import type { Books, Dropped, Room } from './room.ts'
import type { HeldPart } from './versions.ts'

/** What a registration asks of the memory Worker. */
export interface Registration {
  readonly name: string
  readonly owner: number | null
  readonly version: string | null
  readonly replace: boolean
  readonly files: readonly string[]
  /** Answer when the tensors are known and memory is taken: updates need not wait for the bytes. */
  readonly stream: boolean
  readonly load: (part: PartId) => Promise<LoadedPart>
}

/** Brings versions into memory, one after another for each name. */
export class Registrations {
  readonly #books: Books
  readonly #room: Room
  /** Throws when the registry is closed. */
  readonly #requireOpen: () => void
  /** What failed in the last read of a name, until somebody who wanted that version has been told. */
  readonly #failedReads = new Map<string, CkptError>()
  #nextPart: PartId = 1

  constructor(books: Books, room: Room, requireOpen: () => void) {
    this.#books = books
    this.#room = room
    this.#requireOpen = requireOpen
  }

  /** What the next registration will be called. */
  get nextPart(): PartId {
    return this.#nextPart
  }

  /** Why the version that was registered last could not be read. */
  failedRead(name: string): CkptError | undefined {
    return this.#failedReads.get(name)
  }

  /** It was told, or does not matter any more. */
  forgetFailedRead(name: string): void {
    this.#failedReads.delete(name)
  }

  async register(registration: Registration): Promise<RegisterAnswer> {
    this.#requireOpen()
    const { name } = registration
    const begin = performance.now()
    const answer = Promise.withResolvers<RegisterAnswer>()
    // its turn lasts until the bytes are there, however early the answer is given
    this.#books.turns
      .run(name, () => this.#registerNow(registration, begin, answer.resolve))
      .catch(answer.reject)
    try {
      return await answer.promise
    } catch (error) {
      throw withPhase(this.#room.explain(error, name))
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
    if (!registration.replace) this.requireFree(name, owner)
    this.#failedReads.delete(name)
    await this.#room.dropAll(this.#books.versions.superseded(name))
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
      ...(loaded.reads.length > 0 ? { reads: [...loaded.reads] } : {}),
      ...dropped,
      ...(notes.length > 0 ? { notes } : {}),
    })
    await part.complete
  }

  /** Waits for the bytes of a part that is being read. When that fails nobody gets the part any more. */
  async #finish(part: HeldPart): Promise<FinishedLoad> {
    const { id, name, loaded } = part
    try {
      const finished = await this.#books.memory.call('finish', { part: id })
      this.#books.versions.completed(part)
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
    if (!this.#books.versions.failed(part)) return
    if (part.reading) {
      const held = this.#books.versions.held(name, null).length > 0
      const next = held ? '; the next update takes the version that was held before' : ''
      const words = `checkpoint '${name}' could not be read to its end: ${message}${next}`
      this.#failedReads.set(name, CkptError.from({ ...error.failure, message: words }))
    }
    await this.#room.dropAll([part]).catch(() => {})
  }

  async #load(
    registration: Registration,
  ): Promise<{ readonly part: HeldPart; readonly dropped: Dropped }> {
    const id = this.#nextPart++
    const { value: part, dropped } = await this.#room.make(registration, id, async () =>
      this.#add(registration, id, await registration.load(id)),
    )
    return { part, dropped }
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
    }
    this.#books.versions.add(part)
    if (stream) part.complete = this.#finish(part)
    return part
  }

  /** @throws CkptError `checkpoint_exists` */
  requireFree(name: string, owner: number | null): void {
    if (this.#books.versions.held(name, owner).length === 0) return
    throw new CkptError(
      'checkpoint_exists',
      `checkpoint '${name}' is registered already: drop it, or register with "replace": true`,
    )
  }
}

function withPhase(error: CkptError): CkptError {
  return CkptError.from({ phase: 'register', ...error.failure })
}

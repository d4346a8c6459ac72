import { CkptError } from '../api/errors.ts'
import { DTYPES, dtypeIndex, tensorBytes } from './dtypes.ts'
import { refuseExtension, refuseMagic } from './formats.ts'
import { JsonError, JsonReader } from './json-reader.ts'

/** One tensor of a file. */
export interface HeaderTensor {
  name: string
  /** Index into `DTYPES`. */
  dtype: number
  shape: number[]
  /** Byte offset from the start of the file. */
  begin: number
  bytes: number
}

/** `tensors` ascend by `begin` and cover `[dataStart, end of file)` without gap or overlap. */
export interface SafetensorsHeader {
  tensors: HeaderTensor[]
  metadata: Record<string, string>
  dataStart: number
}

/** A file starts with the length of the JSON as a little-endian u64. */
export const HEADER_PREFIX_BYTES = 8

/** `MAX_HEADER_SIZE` of safetensors. */
export const HEADER_BYTES_MAX = 100_000_000

const METADATA = '__metadata__'

/** Limits, so that nonsense is refused early. torch has tensors of at most 64 dimensions. */
const DIMENSIONS_MAX = 64
const METADATA_ENTRIES_MAX = 65_536
const UNKNOWN_FIELDS_MAX = 64

/**
 * Bytes of the JSON that follows the prefix, which is the first 8 bytes of the file (fewer when the
 * file is shorter).
 *
 * @throws CkptError `format_not_supported` for other formats, known by extension or first bytes;
 *   `safetensors_invalid` when the file is too short or the length is impossible.
 */
export function headerBytes(prefix: Uint8Array, fileBytes: number, file: string): number {
  refuseExtension(file)
  const length = Math.min(prefix.length, fileBytes)
  if (length < HEADER_PREFIX_BYTES) {
    refuseMagic(prefix.subarray(0, length), file)
    throw invalid(
      file,
      `not a safetensors file: ${length} bytes, the header's length alone takes 8`,
    )
  }
  const bytes = new DataView(prefix.buffer, prefix.byteOffset).getBigUint64(0, true)
  const most = Math.min(HEADER_BYTES_MAX, fileBytes - HEADER_PREFIX_BYTES)
  if (bytes > BigInt(most)) {
    refuseMagic(prefix, file)
    throw invalid(
      file,
      bytes > BigInt(HEADER_BYTES_MAX)
        ? `not a safetensors file: a header of ${bytes} bytes, the most are ${HEADER_BYTES_MAX}`
        : `a header of ${bytes} bytes is larger than the file, which has ${fileBytes}`,
    )
  }
  return Number(bytes)
}

/**
 * Reads the JSON of a header and checks all that safetensors checks: every dtype known, every shape
 * equal to its bytes, the tensors back to back from the first byte of the data to the last of the
 * file. Also refuses a name that comes twice.
 *
 * @param json the bytes after the prefix, as many as {@link headerBytes} said
 * @throws CkptError `safetensors_invalid` with file, tensor and reason
 */
export function parseHeader(json: Uint8Array, fileBytes: number, file: string): SafetensorsHeader {
  const dataStart = HEADER_PREFIX_BYTES + json.length
  if (dataStart > fileBytes) {
    throw invalid(
      file,
      `a header of ${json.length} bytes is larger than the file, which has ${fileBytes}`,
    )
  }
  const parser = new HeaderParser(json, file, dataStart, fileBytes)
  const header = parser.parse()
  checkCoverage(header.tensors, dataStart, fileBytes, file)
  return header
}

class HeaderParser {
  private readonly reader: JsonReader
  private readonly seen = new Set<string>()
  private readonly tensors: HeaderTensor[] = []
  private metadata: Record<string, string> = {}
  private current: string | undefined

  constructor(
    json: Uint8Array,
    private readonly file: string,
    private readonly dataStart: number,
    private readonly fileBytes: number,
  ) {
    this.reader = new JsonReader(json)
  }

  parse(): SafetensorsHeader {
    try {
      this.reader.object((name) => this.member(name))
      this.current = undefined
      this.reader.end()
    } catch (error) {
      if (!(error instanceof JsonError)) throw error
      throw this.invalid(`invalid header: ${error.message}, at byte ${error.at} of it`)
    }
    return { tensors: this.tensors, metadata: this.metadata, dataStart: this.dataStart }
  }

  private member(name: string): void {
    this.current = name
    if (this.seen.has(name)) throw this.invalid('the name comes twice in the header')
    this.seen.add(name)
    if (name === METADATA) this.readMetadata()
    else this.readTensor(name)
  }

  private readMetadata(): void {
    if (this.reader.takeNull()) return
    const metadata = new Map<string, string>()
    this.reader.object((key) => {
      metadata.set(key, this.reader.string())
      if (metadata.size > METADATA_ENTRIES_MAX) throw this.invalid('too many entries')
    })
    this.metadata = Object.fromEntries(metadata)
  }

  private readTensor(name: string): void {
    const { reader } = this
    let dtype: number | undefined
    let shape: number[] | undefined
    let offsets: number[] | undefined
    let unknownCount = 0
    reader.object((key) => {
      if (key === 'dtype') {
        if (dtype !== undefined) throw this.invalid("'dtype' comes twice")
        dtype = this.readDtype()
      } else if (key === 'shape') {
        if (shape !== undefined) throw this.invalid("'shape' comes twice")
        shape = this.readIntegers(DIMENSIONS_MAX)
      } else if (key === 'data_offsets') {
        if (offsets !== undefined) throw this.invalid("'data_offsets' comes twice")
        offsets = this.readIntegers(2)
      } else if (unknownCount++ < UNKNOWN_FIELDS_MAX) reader.skip()
      else throw this.invalid('too many unknown fields')
    })
    if (dtype === undefined) throw this.invalid("'dtype' is missing")
    if (shape === undefined) throw this.invalid("'shape' is missing")
    if (offsets === undefined) throw this.invalid("'data_offsets' is missing")
    this.addTensor(name, dtype, shape, offsets)
  }

  private addTensor(name: string, dtype: number, shape: number[], offsets: number[]): void {
    const [from, to] = offsets
    if (from === undefined || to === undefined) {
      throw this.invalid(`'data_offsets' has ${offsets.length} numbers instead of 2`)
    }
    const dataBytes = this.fileBytes - this.dataStart
    if (to < from) throw this.invalid(`its data ends at ${to}, before it starts at ${from}`)
    if (to > dataBytes) {
      throw this.invalid(
        `its data [${from}, ${to}) is out of range: the file has ${dataBytes} bytes of data`,
      )
    }
    const bytes = tensorBytes(dtype, shape)
    const form = `shape [${shape.join(', ')}] of ${DTYPES[dtype]?.name}`
    if (bytes === null) throw this.invalid(`${form} is no whole number of bytes below 2^50`)
    if (bytes !== to - from) throw this.invalid(`${form} has ${bytes} bytes, its data ${to - from}`)
    this.tensors.push({ name, dtype, shape, begin: this.dataStart + from, bytes })
  }

  private readDtype(): number {
    const name = this.reader.string()
    const dtype = dtypeIndex(name)
    if (dtype < 0) throw this.invalid(`unknown dtype '${name.slice(0, 40)}'`)
    return dtype
  }

  private readIntegers(countMax: number): number[] {
    const numbers: number[] = []
    this.reader.array(countMax, () => numbers.push(this.reader.integer()))
    return numbers
  }

  private invalid(reason: string): CkptError {
    return invalid(this.file, reason, this.current)
  }
}

/**
 * Sorts the tensors by offset; they must follow each other from `dataStart` to the end of the file.
 */
function checkCoverage(
  tensors: HeaderTensor[],
  dataStart: number,
  fileBytes: number,
  file: string,
): void {
  tensors.sort((a, b) => a.begin - b.begin || a.bytes - b.bytes)
  let end = dataStart
  let previous = ''
  for (const { name, begin, bytes } of tensors) {
    if (begin < end) throw invalid(file, `its data overlaps that of tensor '${previous}'`, name)
    if (begin > end) throw invalid(file, `a gap of ${begin - end} bytes lies before its data`, name)
    end = begin + bytes
    previous = name
  }
  if (end < fileBytes) {
    throw invalid(file, `${fileBytes - end} bytes at the end of the file belong to no tensor`)
  }
}

function invalid(file: string, reason: string, tensor?: string): CkptError {
  if (tensor === undefined) {
    return new CkptError('safetensors_invalid', `${file}: ${reason}`, { phase: 'register' })
  }
  const name = tensor.length > 200 ? `${tensor.slice(0, 200)}...` : tensor
  const message = `${file}: tensor '${name}': ${reason}`
  return new CkptError('safetensors_invalid', message, { phase: 'register', tensor: name })
}

import { CkptError } from '../api/errors.ts'

interface OtherFormat {
  readonly name: string
  readonly extensions: readonly string[]
  /** First bytes of such a file; more than one where the format has several. */
  readonly magics: readonly (readonly number[])[]
}

/** What people have at hand instead of safetensors, and how to know it. */
const OTHER_FORMATS: readonly OtherFormat[] = [
  {
    name: 'a NumPy array',
    extensions: ['.npy'],
    magics: [[0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59]],
  },
  { name: 'a NumPy archive', extensions: ['.npz'], magics: [] },
  {
    name: 'a torch or zip archive (it holds pickles)',
    extensions: ['.pt', '.pth', '.bin', '.ckpt', '.zip'],
    magics: [[0x50, 0x4b, 0x03, 0x04]],
  },
  {
    name: 'a pickle',
    extensions: ['.pkl', '.pickle'],
    magics: [2, 3, 4, 5].map((protocol) => [0x80, protocol]),
  },
  { name: 'a GGUF file', extensions: ['.gguf'], magics: [[0x47, 0x47, 0x55, 0x46]] },
  {
    name: 'an HDF5 file',
    extensions: ['.h5', '.hdf5'],
    magics: [[0x89, 0x48, 0x44, 0x46, 0x0d, 0x0a, 0x1a, 0x0a]],
  },
  { name: 'an ONNX model', extensions: ['.onnx'], magics: [] },
  { name: 'a MessagePack file', extensions: ['.msgpack'], magics: [] },
]

/** Refuses a file by its name: those formats are never read, whatever the content. */
export function refuseExtension(file: string): void {
  const lower = file.toLowerCase()
  const format = OTHER_FORMATS.find((other) => other.extensions.some((end) => lower.endsWith(end)))
  if (format !== undefined) throw notSupported(file, format)
}

/**
 * Refuses a file by its first bytes. To be asked only when they are no plausible header length: a
 * header of 640 bytes starts like a pickle of protocol 2.
 */
export function refuseMagic(prefix: Uint8Array, file: string): void {
  const format = OTHER_FORMATS.find((other) =>
    other.magics.some((magic) => magic.every((byte, i) => prefix[i] === byte)),
  )
  if (format !== undefined) throw notSupported(file, format)
}

function notSupported(file: string, format: OtherFormat): CkptError {
  const message = `${file}: ${format.name} is not supported; accepted are safetensors files`
  return new CkptError('format_not_supported', message, { phase: 'register' })
}

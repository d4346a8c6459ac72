import { CkptError } from '../api/errors.ts'
import { JsonError, JsonReader } from './json-reader.ts'

/** `model.safetensors.index.json`: which file of its directory holds which tensor. */
export interface SafetensorsIndex {
  /** Tensor name to file name. */
  weightMap: Map<string, string>
}

/**
 * Reads an index. File names must stay inside the directory of the index.
 *
 * @throws CkptError `safetensors_invalid` with file, tensor and reason
 */
export function parseIndex(text: string, file: string): SafetensorsIndex {
  const reader = new JsonReader(new TextEncoder().encode(text))
  let weightMap: Map<string, string> | undefined
  let tensor: string | undefined
  try {
    reader.object((key) => {
      if (key !== 'weight_map') return reader.skip()
      if (weightMap !== undefined) throw invalid(file, "'weight_map' comes twice")
      const map = new Map<string, string>()
      reader.object((name) => {
        tensor = name
        if (map.has(name)) throw invalid(file, 'the name comes twice', name)
        map.set(name, readFileName(reader, file, name))
      })
      tensor = undefined
      weightMap = map
    })
    reader.end()
  } catch (error) {
    if (!(error instanceof JsonError)) throw error
    throw invalid(file, `${error.message}, at byte ${error.at}`, tensor)
  }
  if (weightMap === undefined) throw invalid(file, "'weight_map' is missing")
  return { weightMap }
}

function readFileName(reader: JsonReader, file: string, tensor: string): string {
  const name = reader.string()
  const parts = name.split('/')
  if (parts.some((part) => part === '' || part === '.' || part === '..') || name.includes('\0')) {
    throw invalid(file, `'${name}' is not the name of a file beside the index`, tensor)
  }
  return name
}

function invalid(file: string, reason: string, tensor?: string): CkptError {
  const where = tensor === undefined ? file : `${file}: tensor '${tensor}'`
  return new CkptError('safetensors_invalid', `${where}: ${reason}`, { phase: 'register', tensor })
}

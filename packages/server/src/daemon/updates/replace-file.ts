import { readdir, rename, rm, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'

/** Names of staged files must differ in the whole process: a file may be written by two at the same time. */
let writes = 0

/**
 * Replaces a file as a whole by a rename, so that a reader sees one version or the other, and so does whoever comes after a
 * process that is killed meanwhile. It need not survive the machine. Rejects, and leaves no other file, where that fails.
 */
export async function replaceFile(path: string, text: string): Promise<void> {
  const staged = `${path}.${process.pid}.${writes++}`
  try {
    await writeFile(staged, text, { mode: 0o600 })
    await rename(staged, path)
  } catch (error) {
    await rm(staged, { force: true }).catch(() => {})
    throw error
  }
}

/** Removes what processes that were killed in {@link replaceFile} have left. To be called where nobody else writes the file. */
export async function removeStaged(path: string): Promise<void> {
  const file = `${basename(path)}.`
  for (const name of await readdir(dirname(path)).catch(() => [])) {
    if (!name.startsWith(file) || !/^\d+\.\d+$/.test(name.slice(file.length))) continue
    await rm(join(dirname(path), name), { force: true }).catch(() => {})
  }
}

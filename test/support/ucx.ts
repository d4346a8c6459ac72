import { CkptError } from '@ckpt/core'
import { openLibrary } from '@ckpt/cuda'

/** Why ranks of several daemons cannot broadcast here; null: they can. */
export const withoutUcx = reason()

if (withoutUcx !== null) console.log(`skipped, what several daemons do: ${withoutUcx}`)

function reason(): string | null {
  try {
    const library = openLibrary({ kind: 'host', hostDevices: 2 })
    library.p2p.close(library.p2p.open(''))
    return null
  } catch (error) {
    return CkptError.wrap(error).message
  }
}

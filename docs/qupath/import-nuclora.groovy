/*
 * Imports the nuclei that `nuclora predict` found into the open image, as detections. For QuPath 0.4 or newer.
 *
 * Open it in QuPath (Automate > Script editor), set the folder below, and choose Run for the open image, or
 * Run > Run for project for all images of the project; QuPath then saves each of them.
 *
 * An import takes the place of an earlier one: detections of the class Nucleus with nuclora's measurements are removed
 * first. Annotations and other detections stay.
 */

import static qupath.lib.scripting.QP.*

import groovy.io.FileType
import qupath.lib.io.PathIO

// What was given to `nuclora predict` with -o.
def outputs = new File("/path/to/nuclora-out")

if (!outputs.isDirectory()) {
    throw new IllegalArgumentException("No such folder: ${outputs}. Set it at the top of this script.")
}

def uris = getCurrentServer().getURIs()
if (uris.size() != 1) {
    println "Skipped: ${getCurrentImageName()} is not made from one file"
    return
}

// nuclora names its outputs by the image's file, without what follows the last dot.
def file = new File(uris[0].getPath()).getName()
def dot = file.lastIndexOf(".")
def wanted = (dot > 0 ? file.substring(0, dot) : file) + ".geojson"

def found = []
if (new File(outputs, wanted).isFile()) {
    found << new File(outputs, wanted)
} else {
    // With --recursive they lie in folders like those of the images.
    outputs.eachFileRecurse(FileType.FILES) { if (it.getName() == wanted) found << it }
}
if (found.size() != 1) {
    println "Skipped: ${found.isEmpty() ? 'no' : found.size()} ${wanted} in ${outputs}"
    return
}

def nuclei = PathIO.readObjects(found[0])
def hierarchy = getCurrentHierarchy()
def earlier = hierarchy.getDetectionObjects().findAll { one ->
    one.getPathClass() == getPathClass("Nucleus") && hasMeasurement(one, "Label") && hasMeasurement(one, "Score")
}
hierarchy.removeObjects(earlier, true)
hierarchy.addObjects(nuclei)
fireHierarchyUpdate()

println "${file}: ${nuclei.size()} nuclei from ${found[0]}" + (earlier.isEmpty() ? "" : ", in place of ${earlier.size()}")

// Find the defects in one image: segment MODEL.onnx IMAGE CLASS_MAP.png
// The model was exported with --size, and the image has that size.
#include <fstream>
#include <iterator>
#include <opencv2/dnn.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

int main(int, char** arguments) {
    // One file holds the network and, as part of a JSON text, its thresholds.
    std::ifstream stream(arguments[1], std::ios::binary);
    const std::string model{std::istreambuf_iterator<char>(stream), {}};
    const size_t begin = model.find("{\"gate\":["), end = model.find(",\"chosen_by\"", begin);
    const std::string json = model.substr(begin, end - begin) + "}";
    const cv::FileStorage thresholds(json, cv::FileStorage::MEMORY | cv::FileStorage::FORMAT_JSON);
    std::vector<float> gate, pixel;
    std::vector<int> min_area_px;
    thresholds["gate"] >> gate;
    thresholds["pixel"] >> pixel;
    thresholds["min_area_px"] >> min_area_px;

    const cv::Mat image = cv::imread(arguments[2], cv::IMREAD_GRAYSCALE | cv::IMREAD_IGNORE_ORIENTATION);
    cv::dnn::Net network = cv::dnn::readNetFromONNX(model.data(), model.size());
    network.setInput(cv::dnn::blobFromImage(image, 1, {}, {}, false, false, CV_8U));
    std::vector<cv::Mat> answer;
    network.forward(answer, std::vector<cv::String>{"probabilities", "gate"});

    cv::Mat class_map(image.size(), CV_8U, cv::Scalar(0)), best(image.size(), CV_32F, cv::Scalar(-1));
    for (int index = 0; index < static_cast<int>(gate.size()); ++index) {
        if (answer[1].ptr<float>()[index] < gate[index]) continue;
        const cv::Mat probability(image.size(), CV_32F, answer[0].ptr<float>(0, index));
        cv::Mat label, stats, centroids;
        cv::connectedComponentsWithStats(probability >= pixel[index], label, stats, centroids);
        for (int region = 1; region < stats.rows; ++region) {
            if (stats.at<int>(region, cv::CC_STAT_AREA) < min_area_px[index]) continue;
            const cv::Mat here = (label == region) & (probability > best);
            class_map.setTo(index + 1, here);
            probability.copyTo(best, here);
        }
    }
    return cv::imwrite(arguments[3], class_map) ? 0 : 1;
}

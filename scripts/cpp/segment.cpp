// Find the defects in one image: segment MODEL.onnx IMAGE CLASS_MAP.png
// The model was exported with --size, and the image has that size.
#include <fstream>
#include <iterator>
#include <opencv2/dnn.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

int main(int count, char** arguments) {
    CV_Assert(count == 4);
    // The file holds the network and, in a JSON text, its thresholds.
    std::ifstream stream(arguments[1], std::ios::binary);
    const std::string model{std::istreambuf_iterator<char>(stream), {}};
    const size_t begin = model.find("{\"gate\":["), end = model.find(",\"chosen_by\"", begin);
    CV_Assert(begin < end && end < model.size());
    const std::string json = model.substr(begin, end - begin) + "}";
    const cv::FileStorage thresholds(json, cv::FileStorage::MEMORY | cv::FileStorage::FORMAT_JSON);
    std::vector<float> gate, pixel;
    std::vector<int> min_area_px;
    thresholds["gate"] >> gate;
    thresholds["pixel"] >> pixel;
    thresholds["min_area_px"] >> min_area_px;

    const cv::Mat image = cv::imread(arguments[2], cv::IMREAD_GRAYSCALE | cv::IMREAD_IGNORE_ORIENTATION);
    CV_Assert(!image.empty());
    cv::dnn::Net network = cv::dnn::readNetFromONNX(model.data(), model.size());
    network.setInput(cv::dnn::blobFromImage(image, 1, {}, {}, false, false, CV_8U));
    std::vector<cv::Mat> answer;
    network.forward(answer, std::vector<cv::String>{"probabilities", "gate"});
    CV_Assert(answer[0].size[2] == image.rows && answer[0].size[3] == image.cols);

    cv::Mat class_map(image.size(), CV_8U, cv::Scalar(0)), best(image.size(), CV_32F, cv::Scalar(-1));
    for (int index = 0; index < static_cast<int>(gate.size()); ++index) {
        if (answer[1].ptr<float>()[index] < gate[index]) continue;
        const cv::Mat probability(image.size(), CV_32F, answer[0].ptr<float>(0, index));
        cv::Mat region, stats, centroids;  // regions are numbered from 1
        cv::connectedComponentsWithStats(probability >= pixel[index], region, stats, centroids);
        for (int y = 0; y < image.rows; ++y)
            for (int x = 0; x < image.cols; ++x) {
                const int number = region.at<int>(y, x);
                if (number == 0 || stats.at<int>(number, cv::CC_STAT_AREA) < min_area_px[index]) continue;
                if (probability.at<float>(y, x) <= best.at<float>(y, x)) continue;
                best.at<float>(y, x) = probability.at<float>(y, x);
                class_map.at<uchar>(y, x) = static_cast<uchar>(index + 1);
            }
    }
    return cv::imwrite(arguments[3], class_map) ? 0 : 1;
}
